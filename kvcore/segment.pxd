"""One segment file: its header, its read-only mapping, guarded reads of it. docs/format.md ("Segment").

     0        64                    flushed            allocated
     | header | records ...            | zeros taken ahead |

A segment is written through its descriptor, or a little at a time through a window, and read through its mapping. Mapped
bytes are only touched inside a guard (guard.h), so that a page gone under the mapping is an error of one read. The mapping
reaches beyond the end of the file from the start, for the file to grow under it.

Thread: the owner's, but for segment_copy and segment_key_equal, which any thread may call while the segment is referenced.
"""
from libc.stdint cimport uint32_t, uint64_t

from kvcore.files cimport Files
from kvcore.record cimport Record
from kvcore.types cimport uint8_t


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass


cdef enum:
    SEGMENT_HEADER = 64
    SEGMENT_FORMAT = 1
    NO_SLOT = 0xFFFFFFFF

cdef uint64_t SEGMENT_LIMIT     # bytes: offsets fit 32 bits


cdef class Segment:
    cdef Files files
    cdef readonly bytes path
    cdef readonly uint32_t id
    cdef uint32_t slot              # place in Log.segments, which is how the index names it; NO_SLOT: none (any more)
    cdef int fd                     # -1 once sealed and no longer needed for writing or syncing
    cdef int pins                   # jobs that use fd right now
    cdef pthread_mutex_t lock       # held during fdatasync
    cdef int sync_failed            # -errno of the fdatasync that failed; never tried again
    cdef uint32_t seed
    cdef const uint8_t* map
    cdef size_t mapped
    cdef uint8_t* window            # for segment_store; NULL: none
    cdef size_t window_size         # 0: not asked for yet
    cdef readonly uint64_t flushed  # bytes of header and whole records in the file
    cdef uint64_t allocated         # size of the file
    cdef uint64_t synced            # bytes known to be on the disk
    cdef readonly bint sealed
    cdef readonly uint64_t dead     # bytes of records that no longer count
    cdef uint64_t buried            # bytes of tombstones, marks and commits, which are among the dead
    cdef readonly bint compacted    # holds copies of older records
    cdef bint damaged               # a bad record was met in it: it is not compacted, and its saved order is not believed
    cdef bint hides                 # it may have tombstones or deadlines, which hide older records elsewhere
    cdef bint hidden                # not for the manifest: an output not finished yet, or a source about to be dropped
    cdef readonly uint64_t records
    cdef list runs                  # of Order, see order.pxd; None: not asked for yet
    cdef uint64_t ordered           # bytes that the runs cover
    cdef object sorting             # the OrderJob under way for it, or None
    cdef bint unsorted              # it was sealed and its one final order is due
    cdef readonly uint64_t min_version
    cdef readonly uint64_t max_version


# Make the file with its header, durable with its name. Raises StorageError; nothing is left behind then.
cdef Segment segment_create(Files files, bytes directory, uint32_t id, bytes store_id, bint compacted)

# Open an existing file and check its header. Raises StorageError, CorruptionError.
cdef Segment segment_open(Files files, bytes directory, uint32_t id, bytes store_id)

# Open an existing file for reading only, whatever its header says; seed and compacted are the caller's to set. Raises
# StorageError.
cdef Segment segment_open_readonly(Files files, bytes directory, uint32_t id)

# Are these SEGMENT_HEADER bytes a header whose checksum holds?
cdef bint segment_header_holds(const uint8_t* header) except -1

cdef bytes segment_name(uint32_t id)

# What the manifest says of it, as a sealed one or an open one.
cdef dict segment_entry(Segment s, bint sealed)

# Make sure that bytes up to `end` are mapped. Raises StorageError.
cdef int segment_map(Segment s, uint64_t end) except -1

# Write n bytes at offset, in space that was taken ahead, without a system call; `size`: what a segment may have. False when
# that cannot be done: write them then.
cdef bint segment_store(Segment s, const void* src, size_t n, uint64_t offset, size_t size) noexcept

# Nothing is written any more: a job may do this before segment_seal does.
cdef void segment_close_window(Segment s) noexcept

# Put what is in the file on the disk; any thread. 0 or -errno, from the first failure on for ever.
cdef int segment_sync_quietly(Segment s) noexcept nogil

# The same. Raises StorageError.
cdef int segment_sync(Segment s) except -1

# Sealing is over: no more writes. The descriptor closes when its last pin goes.
cdef void segment_seal(Segment s) noexcept
cdef void segment_unpin(Segment s) noexcept

# Copy n bytes from offset. 0, or -1 when they cannot be read.
cdef int segment_copy(Segment s, uint64_t offset, void* dst, size_t n) noexcept nogil

# Have the beginning of the n bytes from offset loaded into the cache. Nothing happens where they cannot be read.
cdef void segment_prefetch(Segment s, uint64_t offset, size_t n) noexcept nogil

# Are these bytes in memory, so that reading them waits for no disk?
cdef bint segment_resident(Segment s, uint64_t offset, size_t n) noexcept nogil

# Begin to read them into memory; wait until they are there. Any thread, while the segment is referenced.
cdef void segment_fetch(Segment s, uint64_t offset, size_t n) noexcept nogil
cdef void segment_await(Segment s, uint64_t offset, size_t n) noexcept nogil

# Does the record of `size` bytes at offset hold this key, by its bytes alone? 1, 0, or -1 when they cannot be read.
cdef int segment_key_equal(Segment s, uint64_t offset, size_t size, const uint8_t* key, size_t n) noexcept nogil

# Split the header of the record at offset; its key and value point into the mapping, unread. 0, or -1 when the header
# cannot be read or claims what cannot be: a record beyond `end`, or of a version the segment does not hold.
cdef int segment_header(Segment s, uint64_t offset, uint64_t end, Record* r) noexcept nogil

# Copy n mapped bytes out. 0, or -1 when they cannot be read.
cdef int segment_copy_from(const void* mapped, void* dst, size_t n) noexcept nogil

# Compare the key of the record at offset with the n bytes at key, as memcmp does. 1 when it cannot be read.
cdef int segment_compare(Segment s, uint64_t offset, const uint8_t* key, size_t n) noexcept nogil

# Open descriptors and mappings of all segments of the process: what the tests balance.
cdef long segments_open
