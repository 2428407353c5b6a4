import os
from itertools import islice

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport SIZE_MAX, int64_t
from libc.string cimport memmove

from kvcore.bytebuf cimport bytebuf_append, bytebuf_clear
from kvcore.compaction cimport Compaction, unfinished
from kvcore.due cimport due_sources
from kvcore.expiry cimport deadline_of, deadlines_add, deadlines_reserve, deadlines_sweep, deadlines_tidy
from kvcore.files cimport Files
from kvcore.hashindex cimport Entry, index_hash, index_insert, index_prefetch, index_remove
from kvcore.log cimport (
    log_append, log_bury, log_check_space, log_check_writable, log_commit, log_finish, log_flush, log_give_back,
    log_has_room, log_let_go, log_mark, log_now, log_rotate, log_sync_job, log_take_back, log_take_reserve, log_unsynced)
from kvcore.lookup cimport DAMAGED, FOUND, NOT_FOUND, lookup_damaged, lookup_entry, lookup_expect, lookup_read, lookup_record
from kvcore.owner cimport owner_check, owner_here
from kvcore.record cimport COMMIT_SIZE, RECORD_COMPRESSED, RECORD_MORE, RECORD_TOMBSTONE, Record, record_of, record_size
from kvcore.recovery cimport Recovered, recover
from kvcore.scan cimport Cursor, scan_next, scan_prefix
from kvcore.segment cimport Segment
from kvcore.types cimport MAX_KEY_SIZE, slice_of, uint8_t
from kvcore.undo cimport undo_all, undo_forget, undo_note, undo_reserve

from kvcore.batch import Batch
from kvcore.checkpoint import checkpoint_steps
from kvcore.compress import decompress
from kvcore.due import due_steps, order_steps
from kvcore.errors import ClosedError, StorageError, UsageError
from kvcore.log import NO_SPACE
from kvcore.options import check_options
from kvcore.stats import collect_stats
from kvcore.upkeep import Upkeep
from kvcore.worker import Worker


cdef enum:
    SCRATCH_KEPT = 1 << 20              # bytes of room the scratch buffer keeps
    UNFLUSHED = 512 << 10               # bytes of the buffer from which it is flushed, asked for or not
    SWEPT = 8192                        # deadlines gone through at a time: a millisecond
    SORTED_LAST = 8                     # segments that may be sorted while closing
    MAX_BATCH = 1 << 30                 # bytes of records
    MAINTAINED = 1024                   # so many times while a segment is written, a library looks at what is due
    PATIENCE = 2000                     # ms since the last good sync after which writers wait: what a power cut may cost

LONGEST_TTL = 10 ** 10                  # seconds: some centuries


cdef class Store:
    """A store opened by kvcore.open. Belongs to the thread that opened it; a context manager that closes it.

    `fsync` is the word it was opened with. `recovery` tells what opening found: "seconds" (float), "records" and
    "bytes" replayed, "segments", "torn_bytes", "damaged_bytes", "damaged_ranges", "lost_keys" (int), "messages" (of str).
    """

    def __cinit__(self, path, *, fsync="everysec", autoflush=True, segment_size=64 << 20, max_value_size=64 << 20,
                  executor=None, compression=True, Files files=None):
        self.closed = True
        self.owner = owner_here()
        check_options(path, fsync, segment_size, max_value_size)
        self.worker = None if executor is not None else Worker(self, fsync == "everysec")
        self.upkeep = Upkeep(self, self.worker)
        cdef Recovered opened = recover(
            files or Files(), os.path.abspath(os.fsencode(path)), segment_size, executor or self.worker.submit)
        self.log = opened.log
        self.log.synced_each = fsync == "always"
        self.index = opened.index
        self.deadlines = opened.deadlines
        self.recovery = opened.report
        self.fsync = fsync
        self.autoflush = autoflush
        self.value_limit = max_value_size
        self.compaction = Compaction()
        self.compaction.off = not compression
        self.scratch = ByteBuf()
        self.undo = ByteBuf()
        self.closed = False
        if fsync == "always":
            self.sync()
        else:
            self.synced_at = now_ms(self)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __len__(self):
        sweep(self, SIZE_MAX)
        return self.index.count

    @property
    def state(self):
        """One word (str). ok; full: the last write found no space; read-only: a durability step failed, writing has
        ended; closed.
        """
        if self.closed or self.log.broken is not None:
            return "closed" if self.closed else "read-only"
        return "full" if self.log.full_disk or self.log.short_of_space else "ok"

    @property
    def reason(self):
        """Why the store is read-only (str), or None."""
        return None if self.closed else self.log.broken

    def get(self, bytes key not None, default=None):
        """Return the value of `key` (bytes), or `default`.

        Raises CorruptionError when the record is damaged, ClosedError after close.
        """
        cdef Record r
        if read(self, view(key), self.scratch, &r) == 0:
            return default
        cdef bytes value = r.value.ptr[:r.value.len]
        bytebuf_clear(self.scratch, SCRATCH_KEPT)
        return decompress(value) if r.flags & RECORD_COMPRESSED else value

    def put(self, bytes key not None, bytes value not None, ttl=None):
        """Set `key` (bytes, 1 to 102,400) to `value` (bytes). On return it is as durable as the fsync word says.

        ttl: seconds (float) after which the key is gone; None: never. Without ttl a deadline set before is lifted.

        Raises UsageError for a key, value or ttl out of range, StorageError when it cannot be kept, ReadOnlyError,
        ClosedError. The old value is then unchanged.
        """
        look_after(self)
        put(self, view(key), view(value), 0 if ttl is None else deadline_in(self, ttl))
        after_write(self)

    def delete(self, bytes key not None):
        """Remove `key`; return whether it was there (bool). Raises as put does."""
        look_after(self)
        cdef bint there = store_delete(self, view(key))
        if there:
            after_write(self)
        return there

    def batch(self):
        """A Batch: `with db.batch() as b: b.put(...); b.delete(...)` does all of it or, after an error or a crash, none."""
        check_open(self)
        return Batch(self)

    def apply(self, list operations not None):
        """What a Batch does at its end. operations: (key, value, ttl) each; value None: delete."""
        cdef size_t size = 0
        if not operations:
            return
        for key, value, ttl in operations:
            check_sizes(self, view(key), view(b"" if value is None else value))
            size += record_size(len(key), 0 if value is None else len(value), ttl is not None)
        deadlines = [0 if ttl is None else deadline_in(self, ttl) for _, _, ttl in operations]
        look_after(self)
        store_batch(self, len(operations), size)
        try:
            for (key, value, _), deadline in zip(operations, deadlines):
                if value is None:
                    store_delete(self, view(key))
                else:
                    store_put(self, view(key), view(value), deadline)
        except BaseException:
            store_batch_undo(self)
            raise
        after_write(self)

    def keys(self, bytes prefix not None=b""):
        """Iterate over the keys (bytes) that begin with `prefix`, in byte order. Raises CorruptionError, ClosedError."""
        cdef ByteBuf key = ByteBuf()
        cursor = store_scan(self, view(prefix))
        while store_next(self, cursor, key, None):
            yield key.data[:key.len]
            bytebuf_clear(key, SCRATCH_KEPT)

    def items(self, bytes prefix not None=b""):
        """Iterate over (key, value) pairs of bytes, by key. Raises CorruptionError, ClosedError."""
        cdef ByteBuf key = ByteBuf()
        cdef ByteBuf value = ByteBuf()
        cursor = store_scan(self, view(prefix))
        while store_next(self, cursor, key, value):
            yield key.data[:key.len], value.data[:value.len]
            bytebuf_clear(key, SCRATCH_KEPT)
            bytebuf_clear(value, SCRATCH_KEPT)

    def flush(self):
        """Hand everything written to the kernel. Raises StorageError; what was not flushed is then taken back."""
        store_flush(self)

    def sync(self):
        """Put everything written on the disk. Raises StorageError, ReadOnlyError."""
        store_flush(self)
        self.sync_flushed()

    def sync_flushed(self):
        """Put all that is flushed on the disk. The worker's thread may call this. Raises ClosedError, ReadOnlyError."""
        job = self.sync_job()
        started = now_ms(self)
        if job is not None:
            job.run()
            job.finish()
        self.synced_at = started

    def sync_job(self):
        """A Job that puts all that is flushed on the disk; None when it is there already.

        job.run() may be called on any thread, job.finish() (raises StorageError) on this one afterwards.
        """
        if self.closed:         # and no more: any thread may call this
            raise ClosedError("the store is closed")
        return log_sync_job(self.log)

    @property
    def unsynced(self):
        """Bytes that are in the kernel but not yet proven to be on the disk (int)."""
        check_open(self)
        return log_unsynced(self.log)

    def sweep(self):
        """Give back what some thousands of keys past their deadline take. Returns whether more are due (bool)."""
        return sweep(self, SWEPT)

    def maintenance(self, idle=False):
        """What should be done now to keep the store lean and quick to open: an iterator of Jobs, or None.

        drive() it, or run() each job on any thread, then flush() and finish() it here before the next is asked for. idle
        (bool): there is nothing else to do, less dead space is worth reclaiming.
        """
        sweep(self, SWEPT)
        if self.log.broken is not None:
            return None
        if self.state == "full":
            log_take_reserve(self.log)
        store_flush(self)
        return due_steps(self.compaction, self.log, self.index, self.deadlines, idle)

    def sealed_ids(self):
        """Numbers of the sealed segments (list of int), for compaction_of."""
        check_open(self)
        return [segment.id for segment in self.log.segments if segment is not None and (<Segment>segment).sealed]

    def compaction_of(self, ids):
        """Compact the sealed segments with these numbers: an iterator of Jobs, as from maintenance()."""
        self.upkeep.finish()
        store_flush(self)
        sources = [segment for segment in self.log.segments
                   if segment is not None and (<Segment>segment).sealed and segment.id in ids]
        return self.compaction.steps(self.log, self.index, self.deadlines, sources)

    def drive(self, steps):
        """Run an iterator of Jobs to its end, here and now. Raises StorageError."""
        self.upkeep.run(steps)

    def compact(self):
        """Reclaim all the dead space that can be. Takes as long as it takes. Raises StorageError, ClosedError."""
        check_open(self)
        self.upkeep.finish()
        store_flush(self)
        if self.log.active.dead:
            log_rotate(self.log)
        log_finish(self.log)
        sweep(self, SIZE_MAX)
        reclaimed = -1
        while self.compaction.reclaimed_bytes != reclaimed:
            reclaimed = self.compaction.reclaimed_bytes
            sources = due_sources(self.compaction, self.log, True)
            if sources:
                self.drive(self.compaction.steps(self.log, self.index, self.deadlines, sources))

    def checkpoint(self):
        """Write an image of the index, so that the next opening need not replay what is in the log now.

        Happens by itself at close and now and then. Raises StorageError, ClosedError.
        """
        self.upkeep.finish()
        self.drive(self.checkpoint_steps())

    def checkpoint_steps(self):
        """The same as an iterator of Jobs: run() each, on any thread, and finish() it here before the next is asked for."""
        store_flush(self)
        return checkpoint_steps(self.log, self.index, self.deadlines)

    def close(self):
        """Flush, sync, give back the space taken ahead and let the directory go. Closing twice is no error.

        Raises StorageError when that fails; the store is closed all the same. One that is read-only is only let go.
        """
        if self.closed:
            return
        check_open(self)
        try:
            try:
                if self.log.broken is None:
                    finish_writing(self)
            finally:
                # Nothing may work in the directory once it is let go.
                log_finish(self.log)
                if self.worker is not None:
                    self.worker.stop()
                    self.upkeep.collect()
            log_give_back(self.log)
        finally:
            self.closed = True
            log_let_go(self.log)
            self.log = None
            self.index = None

    def stats(self):
        """Counts, sizes and times (dict of str to int or float): keys, segments, bytes, seconds, and totals since opening.

        Right after thousands of keys have expired at once "keys" still counts some of them; with an executor, until sweep().
        """
        if self.worker is not None:
            sweep(self, SWEPT)
        own = {"unsynced_bytes": self.unsynced, "flushes": self.flushes, "damaged_reads": self.damaged_reads}
        return own | collect_stats(self.log, self.index, self.deadlines, self.compaction)


# The part of close that may fail: everything on the disk, a checkpoint.
cdef int finish_writing(Store s) except -1:
    try:
        store_flush(s)
        s.upkeep.finish()
    finally:
        # Whatever that came to, what is in the kernel goes to the disk.
        log_finish(s.log)
        if s.log.broken is None:
            s.sync()
    # Sealing does not raise: whoever closes must not take for durable what it could not sync.
    log_check_writable(s.log)
    if s.compaction.unlisted:
        # What somebody else drove, and left: records that the index finds there must be listed.
        s.drive(s.compaction.publish(s.log, s.index, s.deadlines, [], unfinished(s.log)))
    if s.log.flushed_total != s.log.checkpoint_total:
        try:
            s.checkpoint()
        except StorageError as error:
            # It only makes opening quicker.
            if error.errno not in NO_SPACE:
                raise
    if s.state == "ok":
        # So that the next list need not wait for them. Of very many only some: closing comes to an end.
        s.drive(islice(order_steps(s.log, s.index), SORTED_LAST))
    return 0


cdef uint64_t deadline_in(Store s, ttl) except? 0:
    if not 0 < ttl < LONGEST_TTL:
        raise UsageError(f"a ttl is more than 0 and less than {LONGEST_TTL} seconds, not {ttl}")
    return log_now(s.log) + <uint64_t>(ttl * 1000)


# Give the index entries of keys past their deadline back, at most so many. Are more due?
cdef bint sweep(Store s, size_t most) except -1:
    check_open(s)
    if s.deadlines.heap.len == 0:
        return False
    store_flush(s)
    deadlines_tidy(s.deadlines, s.index, s.log)
    return deadlines_sweep(s.deadlines, s.index, s.log, most) == most


cdef inline Slice view(bytes data) noexcept:
    return slice_of(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline int check_open(Store s) except -1:
    if s.closed:
        raise ClosedError("the store is closed")
    return owner_check(&s.owner)


cdef int check_sizes(Store s, Slice key, Slice value) except -1:
    if not 0 < key.len <= MAX_KEY_SIZE:
        raise UsageError(f"a key has 1 to {MAX_KEY_SIZE} bytes, not {key.len}")
    if value.len > s.value_limit:
        raise UsageError(f"a value has at most {s.value_limit} bytes, not {value.len}")
    return 0


# What the library promises when put and delete return; kvnet does this for a chunk of commands at once.
cdef int after_write(Store s) except -1:
    if s.autoflush:
        store_flush(s)
        if s.fsync == "always":
            s.sync()
        elif s.worker is not None and s.fsync == "everysec" and not 0 <= now_ms(s) - s.synced_at <= PATIENCE:
            s.sync()
    return 0


# A library has no reactor that would do maintenance: who writes does, a little at a time, before the write.
cdef int look_after(Store s) except -1:
    check_open(s)
    if s.worker is not None and s.log.flushed_total - s.maintained > s.log.segment_size // MAINTAINED:
        s.maintained = s.log.flushed_total
        s.upkeep.step()
    return 0


cdef inline int64_t now_ms(Store s) noexcept:
    return s.log.files.call.clock(s.log.files.ctx)


# Read `key`; its value is behind out's content then, where r.value points. out.len does not move.
cdef int read(Store s, Slice key, ByteBuf out, Record* r) except -1:
    cdef Location at
    check_open(s)
    found = lookup_read(s.index, s.log, index_hash(s.index, key.ptr, key.len), key, out, r, &at)
    if found == DAMAGED:
        s.damaged_reads += 1
        lookup_damaged(s.log, at)
    return found == FOUND and not (r.expires_at and r.expires_at <= log_now(s.log))


cdef int store_get(Store s, Slice key, ByteBuf out) except -1:
    cdef Record r
    if read(s, key, out, &r) == 0:
        return 0
    if r.flags & RECORD_COMPRESSED:
        return append_value(out, &r)
    if r.value.ptr != out.data + out.len:       # but behind what precedes it in the record
        memmove(out.data + out.len, r.value.ptr, r.value.len)
    out.len += r.value.len
    return 1


cdef void store_expect(Store s, const Slice* keys, size_t n) noexcept:
    if not s.closed:
        lookup_expect(s.index, s.log, keys, n)


cdef int append_value(ByteBuf out, const Record* r) except -1:
    cdef bytes value
    if r.flags & RECORD_COMPRESSED:
        value = decompress(r.value.ptr[:r.value.len])
        bytebuf_append(out, <const char*>value, len(value))
    else:
        bytebuf_append(out, r.value.ptr, r.value.len)
    return 1


# Make sure that a record of this size, and the note of its change, have room. After this, nothing but memory can fail.
cdef int make_room(Store s, size_t size) except -1:
    if s.log.broken is not None:
        log_check_writable(s.log)
    if s.batch_left == 0:           # store_batch has made room for a batch
        if not log_has_room(s.log, size):
            store_flush(s)
            log_rotate(s.log)
        elif s.log.buf.len > UNFLUSHED:
            # A buffer that outgrows the processor's cache makes writing slower, not faster.
            store_flush(s)
        if s.log.mark_due:
            log_mark(s.log)
    return undo_reserve(s.undo)


cdef int store_put(Store s, Slice key, Slice value, uint64_t expires_at) except -1:
    check_open(s)
    return put(s, key, value, expires_at)


# store_put, of a store that is known to be open.
cdef int put(Store s, Slice key, Slice value, uint64_t expires_at) except -1:
    cdef Record r = record_of(more_follows(s), key, value, expires_at)
    cdef uint64_t hash
    cdef Location at
    cdef Location before = Location(0, 0, 0)
    check_sizes(s, key, value)
    hash = index_hash(s.index, key.ptr, key.len)
    # The place in the index comes into the cache while the record is encoded.
    index_prefetch(s.index, hash)
    if s.log.short_of_space:
        log_check_space(s.log)
    make_room(s, r.size)
    if expires_at:
        deadlines_reserve(s.deadlines)
    log_append(s.log, &r, &at)
    try:
        point(s, hash, key, at, &before)
    except MemoryError:
        log_take_back(s.log, at.length)
        raise
    if expires_at:
        deadlines_add(s.deadlines, expires_at, hash)
    undo_note(s.undo, hash, before, at)
    return end_of_batch(s)


# Have the index say that the record at `at` is the key's; `before`: the one that was, if any.
cdef int point(Store s, uint64_t hash, Slice key, Location at, Location* before) except -1:
    cdef Entry* entry = NULL
    if lookup_entry(s.index, s.log, hash, key, s.scratch, &entry) == NOT_FOUND:
        index_insert(s.index, hash, at)
    else:
        # A damaged record that may be this key's is replaced as well: writing heals.
        before[0] = entry.at
        entry.at = at
        log_bury(s.log, before[0])
    return 0


cdef int store_delete(Store s, Slice key) except -1:
    cdef Record r = record_of(RECORD_TOMBSTONE | more_follows(s), key, slice_of(NULL, 0), 0)
    cdef uint64_t hash, deadline = 0
    cdef Entry* entry = NULL
    cdef Location at
    cdef Location before = Location(0, 0, 0)
    cdef Record held
    check_open(s)
    check_sizes(s, key, r.value)
    hash = index_hash(s.index, key.ptr, key.len)
    found = lookup_entry(s.index, s.log, hash, key, s.scratch, &entry)
    if found != NOT_FOUND:
        before = entry.at
        deadline = deadline_of(s.log, before)
        if deadline and lookup_record(s.log, before, s.scratch, &held) == DAMAGED:
            deadline = 0            # nothing that a damaged record says is believed
    if (found == NOT_FOUND or 0 < deadline <= log_now(s.log)) and s.batch_left == 0:
        return 0
    make_room(s, r.size)
    log_append(s.log, &r, &at)
    if found != NOT_FOUND:
        index_remove(s.index, hash, entry)
        log_bury(s.log, before)
        at.length = 0
        undo_note(s.undo, hash, before, at)
    end_of_batch(s)
    return found != NOT_FOUND and not 0 < deadline <= log_now(s.log)


cdef int store_batch(Store s, size_t count, size_t bytes) except -1:
    check_open(s)
    log_check_writable(s.log)
    if bytes > MAX_BATCH:
        raise UsageError(f"a batch has at most {MAX_BATCH} bytes, not {bytes}")
    # What is not flushed yet must not be taken back with the batch, nor the batch be torn by a mark or a new segment.
    log_mark(s.log)
    store_flush(s)
    if not log_has_room(s.log, bytes + record_size(0, COMMIT_SIZE, False)):
        log_rotate(s.log)
    s.batch_left = s.batch_size = <uint32_t>count
    return 0


cdef int store_batch_undo(Store s) except -1:
    s.batch_left = 0
    return undo_all(s.undo, s.log, s.index)


# The flag of the next record: those of a batch are followed by more, at last by the commit.
cdef inline uint8_t more_follows(Store s) noexcept:
    return RECORD_MORE if s.batch_left else 0


# Count one operation of the batch under way, if any; behind the last one comes the commit.
cdef inline int end_of_batch(Store s) except -1:
    if s.batch_left:
        s.batch_left -= 1
        if s.batch_left == 0:
            log_commit(s.log, s.batch_size)
    return 0


cdef int store_flush(Store s) except -1:
    check_open(s)
    if s.log.buf.len == 0:
        return 0
    try:
        log_flush(s.log)
    except BaseException:
        undo_all(s.undo, s.log, s.index)
        raise
    s.flushes += 1
    undo_forget(s.undo)
    return 0


cdef object store_scan(Store s, Slice prefix):
    store_flush(s)
    if s.worker is not None:
        s.upkeep.collect()
    return scan_prefix(s.index, s.log, prefix)


cdef int store_next(Store s, object cursor, ByteBuf keys, ByteBuf values) except -1:
    cdef Record r
    check_open(s)
    if scan_next(<Cursor?>cursor, values is not None, s.scratch, &r) == 0:
        return 0
    if keys is not None:
        bytebuf_append(keys, r.key.ptr, r.key.len)
    if values is not None:
        append_value(values, &r)
    bytebuf_clear(s.scratch, SCRATCH_KEPT)
    return 1
