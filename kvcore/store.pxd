"""The Store: what kvnet, and Python programs, hold of the engine. Free functions with the handle first.

Ownership: a Slice passed in is borrowed until the function returns. Results are appended to the caller's ByteBuf.
Thread: the owner's alone.
Errors: every function raises on failure (ClosedError, UsageError, StorageError and its kinds, MemoryError) and has then
changed nothing, except store_flush, which see.
Durability: put and delete change the buffer only. What was put before a store_flush that returned survives the end of
the process; before a sync_job that succeeded, the end of the power.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.compaction cimport Compaction
from kvcore.expiry cimport Deadlines
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log, SyncJob, sync_job_run
from kvcore.lookup cimport LOOKUP_AHEAD
from kvcore.owner cimport Owner
from kvcore.scan cimport Cursor, scan_prepare
from kvcore.types cimport Location, Slice
from kvcore.warm cimport warm_faults, warm_key, warm_next, warm_scan


cdef enum:
    STORE_AHEAD = LOOKUP_AHEAD


cdef class Store:
    cdef object __weakref__
    cdef Log log
    cdef HashIndex index
    cdef Deadlines deadlines
    cdef Compaction compaction
    cdef object worker                  # the thread of a store that is used as a library, or None
    cdef object upkeep                  # drives maintenance
    cdef uint64_t maintained            # flushed_total when it last did
    cdef ByteBuf scratch
    cdef ByteBuf undo                   # what to take back when the buffer cannot be written: undo.pxd
    cdef Owner owner
    cdef bint closed
    cdef bint autoflush
    cdef int64_t synced_at              # clock when the last good sync began
    cdef uint64_t value_limit
    cdef uint32_t batch_left            # operations still to come of the batch under way, and of how many
    cdef uint32_t batch_size
    cdef uint64_t flushes
    cdef uint64_t damaged_reads
    cdef readonly str fsync
    cdef readonly dict recovery


# Append the value of `key` to out. 1, or 0 when there is no such key. Raises CorruptionError when its record is damaged.
cdef int store_get(Store s, Slice key, ByteBuf out) except -1

# These n keys are used next, in this order: what they need is loaded into the cache, STORE_AHEAD at once. A hint.
cdef void store_expect(Store s, const Slice* keys, size_t n) noexcept

# Set key to value. expires_at: unix milliseconds from which on the key is gone; 0: never. Raises UsageError for an empty or
# over-long key or value.
cdef int store_put(Store s, Slice key, Slice value, uint64_t expires_at) except -1

# Remove key. 1, or 0 when there was none.
cdef int store_delete(Store s, Slice key) except -1

# The next `count` puts and deletes, of `bytes` bytes of records in all, are one batch: after a crash all or none of it is
# there. A flush comes first. When one of them raises, store_batch_undo takes those before it back.
cdef int store_batch(Store s, size_t count, size_t bytes) except -1
cdef int store_batch_undo(Store s) except -1

# Hand everything put and deleted so far to the kernel. When that fails (StorageError), all of it since the last flush is
# taken back: the store is what it was then.
cdef int store_flush(Store s) except -1

# How many flushes have succeeded: a change tells the caller that store_put flushed on its own, to begin a new segment.
cdef inline uint64_t store_flushes(Store s) noexcept:
    return s.flushes

# Bytes put but not flushed.
cdef inline size_t store_pending(Store s) noexcept:
    return 0 if s.closed else s.log.buf.len

# A cursor over all keys that begin with `prefix`, in byte order. A flush comes first.
cdef object store_scan(Store s, Slice prefix)

# Append the cursor's next key to `keys`, its value to `values` (either may be None). 1, or 0 at the end.
# Raises CorruptionError for a damaged record; the next call goes on behind it.
cdef int store_next(Store s, object cursor, ByteBuf keys, ByteBuf values) except -1


# The run() of a job of sync_job(), in a thread that does without the GIL; not beside another run().
cdef inline void store_run_sync(void* job) noexcept nogil:
    sync_job_run(<SyncJob>job)

# What the functions above would have to wait for: for the disk, when the data do not fit into memory. A Job that does it, or
# None when there is nothing. run() it on any thread, finish() it here; what follows does not wait then, as a rule.

# For store_get (with `value`), store_put and store_delete of `key`. With a job from before this is added to it.
cdef inline object store_warm(Store s, Slice key, bint value, object job):
    return job if s.closed else warm_key(s.index, s.log, key, value, job)

# For store_scan, and the first store_next, with values or without: also when what it has to sort first would take long. With
# `doubt`, whether all is in memory, never None, as nobody knows before the search is done.
cdef inline object store_warm_scan(Store s, Slice prefix, bint values, bint doubt):
    return None if s.closed else warm_scan(s.log, prefix, values, doubt)

# How often this thread has waited for a page that was read from the disk.
cdef inline long store_faults() noexcept:
    return warm_faults()

# Do a part of what a store_next would do before the first key. Whether that is done.
cdef inline bint store_prepare(object cursor) except -1:
    return scan_prepare(<Cursor?>cursor)

# For the next store_next, when all is prepared.
cdef inline object store_warm_next(object cursor, bint values):
    return warm_next(<Cursor?>cursor, values)
