import os
import threading

cimport cython
from libc.errno cimport EDQUOT, EFBIG, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_CREAT, O_RDWR

from kvcore.ahead cimport PAGE, ahead_close, ahead_meet, ahead_reserve, ahead_zero
from kvcore.bytebuf cimport bytebuf_append, bytebuf_clear, bytebuf_reserve
from kvcore.clock cimport clock
from kvcore.files cimport files_check, files_cut, files_open, files_replace, files_write
from kvcore.order cimport order_make, order_settle, order_start
from kvcore.record cimport (
    COMMIT_SIZE, MARK_SIZE, RECORD_COMMIT, RECORD_HEADER, RECORD_KIND, RECORD_MARK, RECORD_TOMBSTONE, record_encode,
    record_of, record_size)
from kvcore.segment cimport (
    segment_close_window, segment_copy, segment_create, segment_entry, segment_key_equal, segment_map,
    segment_prefetch, segment_seal, segment_store, segment_sync, segment_sync_quietly, segment_unpin)
from kvcore.types cimport slice_of

from kvcore import manifest
from kvcore.errors import ReadOnlyError, StorageError


cdef extern from "guard.h" nogil:
    int kv_key_equal(const uint8_t* record, size_t size, const void* key, size_t n)


cdef enum:
    BUFFER_KEPT = 4 << 20           # bytes of room the buffer keeps between flushes
    STORED = 1 << 10                # bytes up to which a flush goes through the window: beyond, a system call costs less
    MARK_BYTES = 1 << 20            # at most one mark a MiB ...
    MARK_MS = 1000                  # ... or a second
    RESERVE_SIZE = 256 << 10        # bytes: some thousand tombstones, and what it takes to compact what they bury
    RESERVE_PROOF = 64 << 10        # bytes that must be free besides, after a write found no space
    RESERVE_MS = 1000               # between looks whether there is space again

RESERVE_NAME = b"RESERVE"

NO_SPACE = (ENOSPC, EDQUOT, EFBIG)
# What is not the disk's fault and passes: nothing is lost by trying again.
PASSING = (*NO_SPACE, ENOMEM, EMFILE, ENFILE)


@cython.no_gc_clear             # __dealloc__ needs the file table
cdef class Log:
    """The log of one directory. Made by kvcore.recovery only."""

    def __cinit__(self):
        self.lock_fd = -1

    def __dealloc__(self):
        # Without close(): as after the end of the process. The descriptors of segments go with the segments.
        log_let_go(self)


cdef uint64_t log_next_version(Log log) noexcept:
    cdef uint64_t now = <uint64_t>max(log.files.call.clock(log.files.ctx), <int64_t>0) << 20
    log.last_version = max(log.last_version + 1, now)
    return log.last_version


cdef int log_append(Log log, Record* r, Location* at) except -1:
    cdef size_t size = record_size(r.key.len, r.value.len, r.expires_at != 0)
    cdef uint8_t* dst = bytebuf_reserve(log.buf, size + PAGE)       # a flush may add zeros up to the end of a page
    r.version = log_next_version(log)
    record_encode(dst, r, log.active.seed)
    at.segment = log.active_slot
    at.offset = <uint32_t>(log.active.flushed + log.buf.len)
    at.length = <uint32_t>size
    if log.buf_records == 0:
        log.buf_first = r.version
    log.buf_records += 1
    if r.flags & (RECORD_TOMBSTONE | RECORD_KIND):
        log.buf_dead += size
    if r.flags & RECORD_TOMBSTONE or r.expires_at:
        log.active.hides = True
    log.buf.len += size
    return 0


cdef void log_take_back(Log log, size_t size) noexcept:
    log.buf.len -= size
    log.buf_records -= 1


cdef int log_mark(Log log) except -1:
    cdef uint8_t content[MARK_SIZE]
    cdef uint64_t id = log.synced_id
    cdef Record r = record_of(RECORD_MARK, slice_of(NULL, 0), slice_of(content, MARK_SIZE), 0)
    cdef Location at
    if not log.mark_due or not log_has_room(log, record_size(0, MARK_SIZE, False)):
        return 0
    memcpy(content, &id, 8)
    memcpy(content + 8, &log.synced_offset, 4)
    log_append(log, &r, &at)
    log.mark_due = False
    log.marked_at = log.files.call.clock(log.files.ctx)
    log.marked_total = log.flushed_total
    return 0


cdef int log_commit(Log log, uint32_t count) except -1:
    cdef Record r = record_of(RECORD_COMMIT, slice_of(NULL, 0), slice_of(&count, COMMIT_SIZE), 0)
    cdef Location at
    return log_append(log, &r, &at)


# Called when synced_id and synced_offset have moved.
cdef void note_synced(Log log) noexcept:
    cdef int64_t now = log.files.call.clock(log.files.ctx)
    if log.flushed_total - log.marked_total >= MARK_BYTES or not 0 <= now - log.marked_at < MARK_MS:
        log.mark_due = True


cdef int log_check_writable(Log log) except -1:
    if log.broken is not None:
        raise ReadOnlyError(log.broken)
    return 0


cdef int log_break(Log log, str reason) except -1:
    if log.broken is None:
        log.broken = f"{os.fsdecode(log.path)} is read-only until it is opened again: {reason}"
    return 0


# See to the space for a flush up to `end`. Up to where it is to be written.
cdef uint64_t take_ahead(Log log, uint64_t end) noexcept:
    cdef uint64_t written
    if not log.synced_each or not log.ahead.zeros:
        ahead_reserve(log.ahead, log.active, end, log.flushed_total, log.segment_size)
        return end
    written = ahead_meet(log.ahead, log.active, end)
    memset(log.buf.data + log.buf.len, 0, written - end)
    return written


# Write the buffer into space taken ahead, if it is small and there is some. False: it is still to be written. Who is the
# first to touch a page pays with a fault that looks as if the disk had been waited for: that is left to a write. So it is
# when a sync follows, after which every page is to be touched for the first time again.
cdef bint store_ahead(Log log, uint64_t end) noexcept:
    cdef Segment active = log.active
    if log.synced_each or log.buf.len > STORED or end > active.allocated:
        return False
    if (active.flushed - 1) // PAGE != (end - 1) // PAGE:
        return False
    if segment_store(active, log.buf.data, log.buf.len, active.flushed, log.segment_size):
        return True
    # Whatever it was, the space may be gone: somebody cut the file.
    active.allocated = active.flushed
    return False


cdef int log_take_reserve(Log log) except -1:
    cdef bytes path = os.path.join(log.path, RESERVE_NAME)
    cdef uint64_t wanted = RESERVE_SIZE + RESERVE_PROOF if log.full_disk else RESERVE_SIZE
    cdef int result, fd
    log.reserve_tried_at = log.files.call.clock(log.files.ctx)
    log.reserve = 0
    fd = files_open(log.files, path, O_RDWR | O_CREAT)
    result = fd
    if fd >= 0:
        result = log.files.call.fallocate(log.files.ctx, fd, 0, wanted)
        if log.files.call.size(log.files.ctx, fd) > RESERVE_SIZE:
            files_cut(log.files, fd, RESERVE_SIZE)
        log.reserve = max(log.files.call.size(log.files.ctx, fd), <int64_t>0)
        log.files.call.close(log.files.ctx, fd)
    # Where space cannot be taken ahead there is no reserve, and a full disk is noticed by the write it refuses.
    log.short_of_space = -result in NO_SPACE
    if result == 0:
        log.full_disk = False
    return 0


cdef bint log_give_up_reserve(Log log, uint64_t left) except -1:
    cdef int fd, result
    if log.reserve <= left:
        return False
    fd = files_open(log.files, os.path.join(log.path, RESERVE_NAME), O_RDWR)
    if fd < 0:
        return False
    result = files_cut(log.files, fd, left)
    log.files.call.close(log.files.ctx, fd)
    log.reserve = left
    log.short_of_space = True
    log.reserve_tried_at = log.files.call.clock(log.files.ctx)
    return result == 0


cdef int log_check_space(Log log) except -1:
    if log.short_of_space and not 0 <= log.files.call.clock(log.files.ctx) - log.reserve_tried_at < RESERVE_MS:
        log_take_reserve(log)
    if log.short_of_space:
        files_check(-ENOSPC, "write", log.active.path)
    return 0


cdef int log_flush(Log log) except -1:
    cdef Segment active = log.active
    cdef uint64_t end = active.flushed + log.buf.len
    cdef size_t n
    cdef int result = 0, cut
    if log.buf.len == 0:
        return 0
    log_check_writable(log)
    segment_map(active, end)
    n = take_ahead(log, end) - active.flushed
    if not store_ahead(log, end):
        result = files_write(log.files, active.fd, log.buf.data, n, active.flushed)
    if result < 0 and -result in NO_SPACE and log.buf_dead == log.buf.len and log_give_up_reserve(log, RESERVE_LAST):
        # All of it makes room: tombstones.
        result = files_write(log.files, active.fd, log.buf.data, log.buf.len, active.flushed)
    if result < 0:
        # Part of it may be in the file: cut it off again, or the next record would follow half a record.
        cut = log.files.call.ftruncate(log.files.ctx, active.fd, active.flushed)
        active.allocated = active.flushed
        if cut < 0:
            log_break(log, f"{os.fsdecode(active.path)} could not be cut after a failed write: {os.strerror(-cut)}")
        elif -result not in PASSING:
            log_break(log, f"writing {os.fsdecode(active.path)} failed: {os.strerror(-result)}")
        log.full_disk = -result in NO_SPACE
        files_check(result, "write", active.path)
    log.full_disk = False
    log.flushed_total += log.buf.len
    active.flushed = end
    active.records += log.buf_records
    active.dead += log.buf_dead
    active.buried += log.buf_dead
    active.min_version = min(active.min_version, log.buf_first)
    active.max_version = log.last_version
    active.allocated = max(active.allocated, end)
    log_drop(log)
    return 0


cdef void log_drop(Log log) noexcept:
    log.buf_records = 0
    log.buf_dead = 0
    bytebuf_clear(log.buf, BUFFER_KEPT)


cdef int log_rotate(Log log) except -1:
    log_check_writable(log)
    if log.spare is None:
        # The disk is so slow, or so full, that the next segment is not ready: now it has to be waited for.
        log_seal(log)
    log.full.append(log.active)
    log.active = log.spare
    log.active_slot = log.spare.slot
    log.spare = None
    log_submit_seal(log)
    return 0


cdef int log_submit_seal(Log log) except -1:
    if log.seal_job is not None or log.drop_waits:
        return 0
    log.seal_job = new_seal_job(log)
    log.executor(log.seal_job)
    return 0


cdef int log_seal(Log log) except -1:
    cdef Job job
    while log.spare is None:
        # What is under way may be the end of a compaction, which makes no spare.
        if log.seal_job is None:
            log.seal_job = new_seal_job(log)
        job = log.seal_job
        job.run()
        job.finish()
        if job.error is not None and log.spare is None:
            log.full_disk = job.error.errno in NO_SPACE
            raise job.error
    return 0


cdef uint64_t log_unsynced(Log log) noexcept:
    cdef Segment segment
    cdef uint64_t total = log.active.flushed - log.active.synced
    for segment in log.full:
        total += segment.flushed - segment.synced
    return total


cdef SyncJob log_sync_job(Log log):
    cdef Segment segment
    cdef SyncJob job
    cdef void* place
    log_check_writable(log)
    if log_unsynced(log) == 0:
        return None
    job = SyncJob(log)
    job.items = []
    job.segments = ByteBuf()
    for segment in [*log.full, log.active]:
        if segment.synced < segment.flushed:
            place = <void*>segment
            bytebuf_append(job.segments, &place, sizeof(void*))
            segment.pins += 1
            job.items.append((segment, segment.flushed))
    return job


cdef SealJob new_seal_job(Log log):
    cdef SealJob job = SealJob(log)
    cdef Segment segment
    job.seals = list(log.full)
    for segment in job.seals:
        segment.pins += 1
    if log.unpublished is not None:
        job.made = log.unpublished
        job.made_id = job.made.id
    elif log.spare is None:
        job.made_id = log.next_id
        log.next_id += 1
    job.manifest = log_manifest(log, job.seals, job.made_id)
    return job


cdef class Job:
    def __cinit__(self, Log log not None):
        self.log = log
        self.lock = threading.Lock()

    def run(self):
        """Do the disk's part; keeps the GIL only for a moment. Never raises: finish() tells."""
        with self.lock:
            if self.done:
                return
            started = clock()
            try:
                self.work()
            except StorageError as error:
                self.error = error
            except MemoryError:
                self.error = StorageError(ENOMEM, f"no memory for background work in {os.fsdecode(self.log.path)}")
            except BaseException as error:
                # A bug, an interrupt: nothing is proven, as if the disk had failed.
                self.error = StorageError(EIO, f"background work failed: {error!r}")
                self.error.__cause__ = error
            self.seconds = clock() - started
            self.done = True

    def finish(self):
        """Take the result into the log. Raises StorageError when the work failed."""
        if self.finished:
            return
        self.finished = True
        if not self.done:
            self.error = StorageError(EIO, "background work was not done")
        self.settle()

    cdef int work(self) except -1:
        return 0

    cdef int settle(self) except -1:
        return 0


cdef int job_check(Job job) except -1:
    if job.error is not None:
        raise job.error
    return 0


cdef void sync_segments(SyncJob job) noexcept nogil:
    cdef void** segments = <void**>job.segments.data
    cdef size_t i
    for i in range(job.segments.len // sizeof(void*)):
        job.result = segment_sync_quietly(<Segment>segments[i])
        if job.result < 0:
            job.failed = i
            break


cdef void sync_job_run(SyncJob job) noexcept nogil:
    cdef double started = clock()
    sync_segments(job)
    job.seconds = clock() - started
    job.done = True


cdef class SyncJob(Job):
    cdef int work(self) except -1:
        with nogil:
            sync_segments(self)
        return 0

    cdef int settle(self) except -1:
        cdef Segment segment
        cdef uint64_t end, covered = 0
        if self.result < 0:
            segment, _ = self.items[self.failed]
            try:
                files_check(self.result, "sync", segment.path)
            except StorageError as error:
                self.error = error
        for segment, end in self.items:
            segment_unpin(segment)
            if self.error is None:
                covered = end - min(segment.synced, end)
                segment.synced = max(segment.synced, end)
        if self.error is not None:
            log_break(self.log, str(self.error))
            raise ReadOnlyError(self.log.broken)
        segment, end = self.items[len(self.items) - 1]
        if self.log.synced_each and segment is self.log.active:
            ahead_zero(self.log.ahead, segment, covered, self.log.flushed_total, self.log.segment_size)
        if (segment.id, end) >= (self.log.synced_id, self.log.synced_offset):
            self.log.synced_id = segment.id
            self.log.synced_offset = <uint32_t>end
            note_synced(self.log)
        return 0


cdef class SealJob(Job):
    cdef int work(self) except -1:
        cdef Segment segment
        for segment in self.seals:
            files_check(files_cut(segment.files, segment.fd, segment.flushed), "cut", segment.path)
            try:
                segment_sync(segment)
            except StorageError as error:
                # Whatever errno says, records that were acknowledged may be gone: this ends the writing.
                raise ReadOnlyError(error.strerror) from error
            segment_close_window(segment)
        if self.made_id and self.made is None:
            self.made = segment_create(self.log.files, self.log.path, self.made_id, self.log.store_id, False)
            segment_map(self.made, self.log.segment_size)
        log_publish(self.log, self.manifest)
        return 0

    cdef int settle(self) except -1:
        cdef Segment segment
        cdef Log log = self.log
        log.seal_job = None
        for segment in self.seals:
            segment_unpin(segment)
        log.unpublished = self.made if self.error is not None else None
        if self.error is not None:
            # Without space all stays as it was, the full segments open in the manifest, and the next rotation tries again.
            if self.error.errno not in PASSING:
                log_break(log, str(self.error))
            return 0
        for segment in self.seals:
            segment.synced = segment.flushed
            segment.allocated = segment.flushed
            segment_seal(segment)
            log.full.remove(segment)
            segment.unsorted = True
            if (segment.id, segment.flushed) > (log.synced_id, log.synced_offset):
                log.synced_id = segment.id
                log.synced_offset = <uint32_t>segment.flushed
                note_synced(log)
        if self.made is not None:
            log_add_segment(log, self.made)
            log.spare = self.made
        # Without a spare one more is full: the spare of this job was needed meanwhile.
        if log.full:
            log_submit_seal(log)
        return 0


cdef class OrderJob(Job):
    cdef int work(self) except -1:
        self.made = order_make(self.segment, self.before, self.start, self.end)
        return 0

    cdef int settle(self) except -1:
        # Sealed meanwhile, it gets its final order from a later job. What could not be made is made by who scans, and who
        # scanned without waiting may have made later ones.
        if self.segment.sorting is self:
            self.segment.sorting = None
            if self.made is not None and (self.start == 0 or self.segment.runs is self.before):
                order_settle(self.segment, self.made, self.end)
        return 0


cdef OrderJob log_order_job(Log log, Segment segment, bint final):
    cdef OrderJob job = OrderJob(log)
    job.segment = segment
    job.before = segment.runs
    job.start = 0 if final else order_start(segment)
    job.end = segment.flushed
    segment.sorting = job
    if job.start == 0:
        segment.unsorted = False
    return job


cdef bytes log_manifest(Log log, list sealing, uint32_t made):
    cdef Segment segment
    cdef list lines = []
    for segment in sorted((s for s in log.segments if s is not None and not (<Segment>s).hidden), key=segment_id):
        lines.append(segment_entry(segment, segment.sealed or segment in sealing))
    if made:
        lines.append({"id": made, "state": "open"})
    return manifest.encode(log.store_id, log.hash_secret, log.next_id, lines)


def segment_id(Segment segment not None):
    return segment.id


cdef int log_publish(Log log, bytes content) except -1:
    return files_replace(log.files, log.path, manifest.NAME.encode(), content)


cdef int log_copy(Log log, Location at, uint8_t* dst) noexcept:
    cdef Segment segment = log_segment(log, at.segment)
    if segment is log.active and at.offset >= segment.flushed:
        # Opening sees to it that the index names nothing beyond the log; were that ever wrong, it is an error of one read.
        if at.offset - segment.flushed + at.length > log.buf.len:
            return -1
        memcpy(dst, log.buf.data + (at.offset - segment.flushed), at.length)
        return 0
    return segment_copy(segment, at.offset, dst, at.length)


cdef void log_prefetch(Log log, Location at) noexcept:
    cdef Segment segment = log_segment(log, at.segment)
    if at.offset < segment.flushed:
        segment_prefetch(segment, at.offset, at.length)


cdef int log_key_equal(Log log, Location at, Slice key) noexcept:
    cdef Segment segment = log_segment(log, at.segment)
    if at.length < RECORD_HEADER:
        return 0
    if segment is not log.active or at.offset < segment.flushed:
        return segment_key_equal(segment, at.offset, at.length, key.ptr, key.len)
    if at.offset - segment.flushed + at.length > log.buf.len:
        return -1
    return kv_key_equal(log.buf.data + (at.offset - segment.flushed), at.length, key.ptr, key.len)


cdef uint64_t log_now(Log log) noexcept:
    return max(<uint64_t>max(log.files.call.clock(log.files.ctx), <int64_t>0), log.last_version >> 20)


cdef int log_finish(Log log) except -1:
    cdef Job job
    while log.seal_job is not None:
        job = log.seal_job
        job.run()
        job.finish()
    return 0


cdef int log_give_back(Log log) except -1:
    cdef Segment active = log.active
    if active.allocated > active.flushed:
        files_check(files_cut(log.files, active.fd, active.flushed), "cut", active.path)
        active.allocated = active.flushed
    return 0


cdef void log_let_go(Log log) noexcept:
    if log.ahead is not None:
        ahead_close(log.ahead)
    if log.lock_fd >= 0:
        log.files.call.close(log.files.ctx, log.lock_fd)
        log.lock_fd = -1
