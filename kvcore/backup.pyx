"""Backup: a copy of a store as it was at one moment, made from its directory alone, with or without somebody writing there.
docs/format.md ("Backup").

    sealed segments      linked, or copied: they never change
    open ones            copied up to their last good record, the newest first, and sealed in the copy
    MANIFEST             last; until then the copy does not open

The newest first: writing goes on in the next segment only when the one before has its last record. So when there is
something of a segment in the copy, the older ones, copied later, are whole; oldest first, one could be copied before its
end was written, and the next one after its beginning was.

All that the manifest lists is one state of the store together with the log behind it, whatever is sealed, compacted or
dropped meanwhile; only a file that is gone before it was copied is a reason to begin again.
"""
import os
from collections import namedtuple

from libc.errno cimport ENOENT
from libc.stdint cimport uint32_t, uint64_t
from posix.fcntl cimport O_CREAT, O_EXCL, O_WRONLY

from kvcore.bytebuf cimport ByteBuf, bytebuf_reserve
from kvcore.files cimport (
    Files, files_check, files_cut, files_link, files_open, files_read, files_read_all, files_replace,
    files_sync_directory, files_unlink, files_write)
from kvcore.record cimport RECORD_HEADER, RECORD_KIND, RECORD_TOMBSTONE, Record, record_decode
from kvcore.segment cimport SEGMENT_HEADER, Segment, segment_name, segment_open, segment_open_readonly, segment_sync
from kvcore.store cimport Store, store_flush
from kvcore.types cimport uint8_t
from kvcore.walk cimport (
    SPAN_END, SPAN_GOOD, SPAN_TORN, Span, SpanKind, Walk, walk_begin, walk_data_end, walk_fetch, walk_step)

from kvcore import manifest, newdir
from kvcore.errors import ClosedError, CorruptionError, StorageError


cdef enum:
    ATTEMPTS = 10               # to copy a directory that is being changed; what was copied before stays
    CHUNK = 1 << 20             # bytes copied at a time

NAME = b"LAST_BACKUP"

# taken_at (unix seconds, int): the copy is not older than that; segments, bytes, linked_bytes (int); unnoted (str): why its
# time could not be written down in the store's directory, or None.
Backup = namedtuple("Backup", ("taken_at", "segments", "bytes", "linked_bytes", "unnoted"))


def backup(path, target, progress=None, *, Files files=None):
    """Copy the store in directory `path` as it is at one moment into `target`; return a Backup. Somebody may be writing.

    path, target: str, bytes or path-like; target is empty or not there yet. Segments that no longer change are linked where
    both are on one file system. progress: called with the bytes done since the last call.

    What is in the kernel is in the copy, what is in a writer's buffer is not: it is what opening would find, were the
    writer killed at that moment. On return the copy is on the disk. Raises UsageError, StorageError, CorruptionError when
    what is being written is damaged; nothing is left in target then.
    """
    files = files or Files()
    with newdir.filling(os.fsdecode(target), os.fsdecode(path), files):
        done = copy_store(path, target, True, progress, files)
    source = os.path.abspath(os.fsencode(path))
    try:
        files_replace(files, source, NAME, b"%d\n" % done.taken_at)
    except StorageError as error:
        # No space in the store's directory is no fault of the copy.
        done = done._replace(unnoted=str(error))
    return done


def backup_open(Store store not None, target):
    """backup() of a store that this process has open: all that was written is in the copy."""
    store_flush(store)
    return backup(store.log.path, target, files=store.log.files)


def last_backup(Store store not None):
    """Unix time (int) of the moment that the last good backup of an open store holds; 0: there was none."""
    if store.closed:
        raise ClosedError("the store is closed")
    try:
        return int(files_read_all(store.log.files, os.path.join(store.log.path, NAME)))
    except (StorageError, ValueError):
        return 0


def copy_store(path, target, bint links, progress, Files files not None):
    """What backup() does to a directory that is there and empty; without a note of it. links (bool): use them."""
    cdef Copy copy = Copy()
    copy.files = files
    copy.source = os.path.abspath(os.fsencode(path))
    copy.target = os.path.abspath(os.fsencode(target))
    copy.links = links
    copy.progress = progress
    copy.have = {}
    return copy_all(copy)


cdef class Copy:
    """A backup that is being made."""

    cdef Files files
    cdef bytes source
    cdef bytes target
    cdef bint links
    cdef object progress
    cdef dict have              # id: line of the manifest, of the sealed segments that are in the target
    cdef uint64_t linked_bytes


cdef object copy_all(Copy c):
    cdef list lines
    for attempt in range(1, ATTEMPTS + 1):
        at = c.files.call.clock(c.files.ctx) // 1000
        name = os.path.join(c.source, b"MANIFEST")
        store_id, hash_secret, next_id, listed = manifest.decode(files_read_all(c.files, name), os.fsdecode(name))
        try:
            lines = copy_listed(c, store_id, listed)
            break
        except StorageError as error:
            # Dropped by a compaction before it was copied; or seen while it was written.
            if attempt == ATTEMPTS or not (error.errno == ENOENT or isinstance(error, CorruptionError)):
                raise
    for id in c.have.keys() - {line["id"] for line in lines}:
        remove(c, id)
    files_check(files_sync_directory(c.files, c.target), "sync directory", c.target)
    files_replace(c.files, c.target, b"MANIFEST", manifest.encode(store_id, hash_secret, next_id, lines))
    return Backup(at, len(lines), sum([line["bytes"] for line in lines]), c.linked_bytes, None)


# Have all that the manifest lists in the target. Returns the lines of the copy's manifest.
cdef list copy_listed(Copy c, bytes store_id, list listed):
    cdef list sealed = [line for line in listed if line["state"] == "sealed"]
    cdef list opened = sorted([line["id"] for line in listed if line["state"] == "open"], reverse=True)
    cdef list tails = [], lines
    for line in sealed:
        if line["id"] not in c.have:
            copy_sealed(c, line, store_id)
    try:
        for id in opened:
            tails.append(copy_tail(c, id, store_id))
        tails.reverse()
        lines = seal_tails(tails)
    except BaseException:
        # By the next attempt they have more records, or are sealed.
        for id in opened:
            remove(c, id)
        raise
    for id in set(opened) - {line["id"] for line in lines}:
        remove(c, id)
    return sorted([*sealed, *lines], key=id_of)


def id_of(dict line not None):
    return line["id"]


cdef int remove(Copy c, uint32_t id) except -1:
    c.have.pop(id, None)
    files_unlink(c.files, os.path.join(c.target, segment_name(id)))
    return 0


# ---- sealed segments

cdef int copy_sealed(Copy c, dict line, bytes store_id) except -1:
    cdef Segment s = segment_open_readonly(c.files, c.source, line["id"])
    cdef uint64_t size = line["bytes"]
    if s.allocated < size:
        raise CorruptionError(
            f"{os.fsdecode(s.path)} is cut short: {s.allocated} of {size} bytes; restore it, or salvage what is left into a "
            "new directory")
    if c.links and files_link(c.files, s.path, os.path.join(c.target, segment_name(s.id))) >= 0:
        c.linked_bytes += size
        tell(c, size)
    else:
        # Another file system, or one without links. If it is anything else, copying says so.
        segment_sync(copy_segment(c, s, size, store_id))
    c.have[s.id] = line
    return 0


cdef int tell(Copy c, uint64_t n) except -1:
    if c.progress is not None:
        c.progress(n)
    return 0


# Make a file in the target with the first n bytes of the segment, and open it.
cdef Segment copy_segment(Copy c, Segment s, uint64_t n, bytes store_id):
    cdef bytes path = os.path.join(c.target, segment_name(s.id))
    cdef int fd = <int>files_check(files_open(c.files, path, O_WRONLY | O_CREAT | O_EXCL), "create", path)
    try:
        copy_bytes(c, s, n, fd, path)
    finally:
        c.files.call.close(c.files.ctx, fd)
    return segment_open(c.files, c.target, s.id, store_id)


cdef int copy_bytes(Copy c, Segment s, uint64_t n, int fd, bytes path) except -1:
    cdef Files f = c.files
    cdef ByteBuf chunk = ByteBuf()
    cdef uint8_t* data = bytebuf_reserve(chunk, CHUNK)
    cdef uint64_t done = 0
    cdef size_t wanted
    cdef ssize_t got
    cdef int result = 0
    while done < n:
        wanted = min(n - done, <uint64_t>CHUNK)
        with nogil:
            got = files_read(f, s.fd, data, wanted, done)
            if got > 0:
                result = files_write(f, fd, data, got, done)
        files_check(got, "read", s.path)
        files_check(result, "write", path)
        if got == 0:
            raise CorruptionError(f"{os.fsdecode(s.path)} became shorter while it was copied")
        done += got
        tell(c, got)
    return 0


# ---- open segments

# Copy what is written of an open segment, but for zeros at its end. Returns the copy, opened.
cdef Segment copy_tail(Copy c, uint32_t id, bytes store_id):
    cdef Segment s = segment_open_readonly(c.files, c.source, id)
    cdef Segment copied = copy_segment(c, s, walk_data_end(Walk(), s), store_id)
    copied.synced = copied.allocated
    # Some of the zeros may be the last value's.
    files_check(files_cut(c.files, copied.fd, s.allocated), "extend", copied.path)
    copied.allocated = s.allocated
    return copied


# Cut the copies, in the order in which they were written, behind their last good record, and have them on the disk.
# Returns a line for the manifest of each that has records. Raises CorruptionError for bad bytes that are no torn tail.
cdef list seal_tails(list tails):
    cdef Walk w = Walk()
    cdef Segment s
    cdef uint32_t last = 0
    cdef list lines = []
    # Whatever time a record claims: when it stands behind bad bytes, these are no torn tail.
    w.latest_version = <uint64_t>-1
    for s in tails:
        if s.synced > SEGMENT_HEADER:
            last = s.id
    for s in tails:
        walk_tail(w, s, s.id == last)
        files_check(files_cut(s.files, s.fd, s.flushed), "cut", s.path)
        segment_sync(s)
        if s.records:
            lines.append({
                "id": s.id, "state": "sealed", "bytes": s.flushed, "records": s.records, "min_version": s.min_version,
                "max_version": s.max_version, "buried": s.buried})
    return lines


# Count the records of a copy, and set its `flushed` behind the last one. s.synced: where its last byte but zeros ends.
cdef int walk_tail(Walk w, Segment s, bint last) except -1:
    cdef Span span
    cdef SpanKind kind
    walk_begin(w, SEGMENT_HEADER)
    while True:
        kind = walk_step(w, s, s.synced, last, &span)
        if kind == SPAN_GOOD:
            count_records(w, s, span.start, span.end)
        elif kind == SPAN_END or kind == SPAN_TORN:
            break
        else:
            raise CorruptionError(
                f"{os.fsdecode(os.path.basename(s.path))}, which is being written, is damaged from byte {span.start} to "
                f"{span.end}: no backup was made; kvstore check tells more, salvage saves what can be read")
    s.flushed = w.offset
    return 0


cdef int count_records(Walk w, Segment s, uint64_t start, uint64_t end) except -1:
    cdef Record r
    while start < end:
        record_decode(walk_fetch(w, s, start, RECORD_HEADER, s.allocated), s.allocated - start, &r)
        s.records += 1
        s.min_version = min(s.min_version, r.version)
        s.max_version = max(s.max_version, r.version)
        if r.flags & (RECORD_KIND | RECORD_TOMBSTONE):
            s.buried += r.size
        start += r.size
    return 0
