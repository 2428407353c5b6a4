"""The append-only log: records gather in a buffer, flush hands them to the kernel, sync to the disk.

    segments:   [ sealed ] [ sealed ] [ full ] [ active: flushed | buf ]     [ spare ]
                                      |<------ written by sync ------>|

`full` segments have their last record but the published manifest still calls them open; a SealJob ends that and makes
the next spare. A Location names a segment by its slot in `segments`, not by its id: slots stay few.

Durability: log_append changes memory only; after log_flush the record survives the end of the process; after a SyncJob
that began later it survives the end of the power. A failed sync is never retried: the log turns read-only for good.
Thread: the owner's alone, except the run() of jobs.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from kvcore.ahead cimport Ahead
from kvcore.bytebuf cimport ByteBuf
from kvcore.files cimport Files
from kvcore.record cimport Record
from kvcore.segment cimport SEGMENT_HEADER, Segment
from kvcore.types cimport Location, Slice, uint8_t


cdef enum:
    RESERVE_LAST = 64 << 10             # bytes of the reserve that are for compaction, not for tombstones


cdef class Log:
    cdef Files files
    cdef int lock_fd                    # holds the directory; -1: let go
    cdef readonly bytes path            # the directory
    cdef bytes store_id
    cdef bytes hash_secret
    cdef uint64_t segment_size
    cdef list segments                  # of Segment, by slot; None where one was dropped
    cdef uint32_t next_id
    cdef Segment active
    cdef uint32_t active_slot
    cdef Segment spare                  # None until a SealJob made it
    cdef Segment unpublished            # made, but the manifest that lists it could not be written yet
    cdef list full                      # of Segment
    cdef ByteBuf buf                    # whole records that belong behind active.flushed
    cdef uint64_t buf_records           # in buf, and the version of the first
    cdef uint64_t buf_first
    cdef uint64_t buf_dead              # bytes of tombstones and marks in buf
    cdef uint64_t last_version
    cdef object executor                # called with each Job: has it run, on any thread, and finished
    cdef Job seal_job                   # under way, or None
    cdef bint drop_waits                # the end of a compaction comes next: sealing has to pause
    cdef uint64_t flushed_total         # bytes ever handed to the kernel, headers included
    cdef uint32_t synced_id             # position up to which the log is on the disk
    cdef uint32_t synced_offset
    cdef uint64_t checkpoint_total      # flushed_total at the last checkpoint
    cdef uint64_t checkpoint_bytes      # its size, and the clock; 0: none since opening
    cdef int64_t checkpoint_at
    cdef uint64_t checkpoints           # since opening
    cdef int64_t marked_at              # clock, and flushed_total, at the last mark
    cdef uint64_t marked_total
    cdef bint mark_due
    cdef bint synced_each               # a sync follows each flush: space is taken ahead in the way that shortens it
    cdef Ahead ahead
    cdef uint64_t reserve               # bytes of the reserve on the disk
    cdef bint short_of_space            # some was given up, or could not be had: what is left is for making room
    cdef int64_t reserve_tried_at       # clock
    cdef readonly bint full_disk        # the last flush found no space; what does find some clears it
    cdef readonly str broken            # why writing has ended for good, or None


cdef class Job:
    """Work for the disk. run() on any thread, then finish() on the owner's; both once, in that order."""
    cdef Log log
    cdef object lock
    cdef bint done
    cdef bint finished
    cdef object error
    cdef readonly double seconds        # how long run() took
    cdef int work(self) except -1
    cdef int settle(self) except -1


# Raises the error of a job that has run, for generators of jobs.
cdef int job_check(Job job) except -1


cdef class SyncJob(Job):
    cdef list items                     # of (Segment, end)
    cdef ByteBuf segments               # the same as void*, for those who may not touch a list
    cdef int result                     # of the sync that failed, -errno; and which one it was
    cdef size_t failed


cdef class SealJob(Job):
    cdef list seals
    cdef Segment made
    cdef uint32_t made_id               # 0: none is to be made
    cdef bytes manifest


# The run() of a SyncJob in a thread that does without the GIL; not beside another run().
cdef void sync_job_run(SyncJob job) noexcept nogil


# Make the orders that a segment lacks. `start` as order_start says; `end`: of what is sorted.
cdef class OrderJob(Job):
    cdef readonly Segment segment
    cdef list before                    # the orders that it had
    cdef uint64_t start
    cdef uint64_t end
    cdef readonly list made             # all that it has then; None: they could not be made


# Put one record into the buffer; fill its version and `at`. Raises MemoryError; nothing has changed then.
cdef int log_append(Log log, Record* r, Location* at) except -1

# Put the commit of a batch of `count` records into the buffer.
cdef int log_commit(Log log, uint32_t count) except -1

# Take the last record, of `size` bytes, out of the buffer again.
cdef void log_take_back(Log log, size_t size) noexcept

# Put a mark into the buffer, if one is due.
cdef int log_mark(Log log) except -1

# Hand the buffer to the kernel. Raises StorageError; then the file ends where it did before, and the buffer stands.
cdef int log_flush(Log log) except -1

# Have the reserve on the disk; log.short_of_space says whether there was no space for it. After a write that found none it
# takes a little more to believe that there is.
cdef int log_take_reserve(Log log) except -1

# Give the reserve up but for `left` bytes, for what makes room. False: there is no more than that.
cdef bint log_give_up_reserve(Log log, uint64_t left) except -1

# Raises StorageError while new values have to wait for space. Looks for some once a second.
cdef int log_check_space(Log log) except -1

# Empty the buffer.
cdef void log_drop(Log log) noexcept

# Go on in the next segment. The buffer must be empty. Raises StorageError; then nothing has changed.
cdef int log_rotate(Log log) except -1

# Run and finish the sealing of full segments and the making of a spare. Raises StorageError.
cdef int log_seal(Log log) except -1

# A job that makes the orders that the segment lacks now, before somebody scans, or with `final` the one order of a sealed
# segment, whatever it has; segment.sorting, too.
cdef OrderJob log_order_job(Log log, Segment segment, bint final)

# End the writing for good.
cdef int log_break(Log log, str reason) except -1

# Start sealing the full segments and making a spare, unless that is under way or has to wait.
cdef int log_submit_seal(Log log) except -1

# Bytes that are flushed but not proven to be on the disk.
cdef uint64_t log_unsynced(Log log) noexcept

# Wait for the sealing that is under way: nothing may be synced, cut or published after the directory was let go.
cdef int log_finish(Log log) except -1

# Let the directory go. Without this it is let go with the log.
cdef void log_let_go(Log log) noexcept

# Cut off the space that the active segment took ahead. Raises StorageError.
cdef int log_give_back(Log log) except -1

# A job that syncs all that is flushed; None when all is. Raises ReadOnlyError.
cdef SyncJob log_sync_job(Log log)

# Raises ReadOnlyError when the log is broken.
cdef int log_check_writable(Log log) except -1

# Copy the record at `at` out: 0, or -1 when it cannot be read.
cdef int log_copy(Log log, Location at, uint8_t* dst) noexcept

# Have the beginning of the record at `at` loaded into the cache.
cdef void log_prefetch(Log log, Location at) noexcept

# Does the record at `at` hold this key, by its bytes alone? 1, 0, or -1 when it cannot be read.
cdef int log_key_equal(Log log, Location at, Slice key) noexcept

# Encode the manifest of the present state, with `sealing` taken as sealed and `made` as one more open segment.
cdef bytes log_manifest(Log log, list sealing, uint32_t made)

# Publish it. Raises StorageError.
cdef int log_publish(Log log, bytes manifest) except -1

cdef uint64_t log_next_version(Log log) noexcept

# The time that decides what has expired, in unix milliseconds: the clock's, but never before the last record's.
cdef uint64_t log_now(Log log) noexcept


# Room for a record of `size` bytes in the active segment? False: flush, then log_rotate.
cdef inline bint log_has_room(Log log, size_t size) noexcept:
    cdef uint64_t end = log.active.flushed + log.buf.len
    # An empty segment takes any record: one larger than a segment gets a segment of its own.
    return end == SEGMENT_HEADER or end + size <= log.segment_size


# Take a segment into the list.
cdef inline int log_add_segment(Log log, Segment segment) except -1:
    if None in log.segments:
        segment.slot = <uint32_t>log.segments.index(None)
        log.segments[segment.slot] = segment
    else:
        segment.slot = <uint32_t>len(log.segments)
        log.segments.append(segment)
    return 0


cdef inline Segment log_segment(Log log, uint32_t slot):
    return <Segment>log.segments[slot]


# The log is known to be on the disk up to this position.
cdef inline void log_note_synced(Log log, uint32_t id, uint32_t offset) noexcept:
    if id > log.synced_id or (id == log.synced_id and offset > log.synced_offset):
        log.synced_id = id
        log.synced_offset = offset


# The record at `at` no longer counts for its key; or does again.
cdef inline void log_bury(Log log, Location at) noexcept:
    cdef Segment segment = log_segment(log, at.segment)
    segment.dead += at.length


cdef inline void log_unbury(Log log, Location at) noexcept:
    cdef Segment segment = log_segment(log, at.segment)
    segment.dead -= at.length
