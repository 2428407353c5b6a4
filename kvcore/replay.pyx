import os

from libc.string cimport memcpy
from posix.fcntl cimport O_CREAT, O_TRUNC, O_WRONLY

from kvcore.bytebuf cimport bytebuf_append, bytebuf_clear, bytebuf_reserve
from kvcore.expiry cimport deadlines_add, deadlines_reserve
from kvcore.files cimport Files, files_check, files_unlink, files_write
from kvcore.hashindex cimport Entry, index_find, index_hash, index_insert, index_remove
from kvcore.log cimport log_copy, log_segment
from kvcore.lookup cimport NOT_FOUND, lookup_entry
from kvcore.order cimport order_path
from kvcore.record cimport (
    RECORD_COMMIT, RECORD_HEADER, RECORD_KIND, RECORD_TOMBSTONE, Record, record_decode, record_encode, record_of)
from kvcore.segment cimport SEGMENT_HEADER, SEGMENT_LIMIT, segment_map
from kvcore.types cimport Location, slice_of, uint8_t
from kvcore.walk cimport (
    SPAN_BROKEN, SPAN_DAMAGED, SPAN_GOOD, SPAN_TORN, Span, SpanKind, walk_begin, walk_data_end, walk_fetch,
    walk_latest, walk_lost, walk_note_synced, walk_step)


cdef enum:
    KEPT = 1 << 20              # bytes copied to the quarantine at a time

cdef uint64_t DAY = <uint64_t>86400000 << 20

# What is wrong with a range of bytes.
DAMAGED = "damaged"
HALF_BATCH = "half a batch"
MISSING = "missing"
TORN = "torn"


cdef struct Grave:
    uint64_t hash
    Location at


cdef class Replay(Walk):
    """One reading of a directory. Made by kvcore.recovery and kvcore.survey only."""

    def __cinit__(self, Log log not None, HashIndex index not None, Deadlines deadlines not None):
        self.log = log
        self.index = index
        self.deadlines = deadlines
        self.scratch = ByteBuf()
        self.tombstones = ByteBuf()
        self.lost = {}
        self.messages = []
        self.newest = log.last_version
        self.latest_version = (<uint64_t>max(log.files.call.clock(log.files.ctx), <int64_t>0) << 20) + DAY


# Put one record into the index if it is the newest of its key.
cdef int apply(Replay p, const Record* r, Location at) except -1:
    cdef Entry* entry = NULL
    cdef uint64_t hash = index_hash(p.index, r.key.ptr, r.key.len)
    cdef Location header
    cdef uint8_t raw[RECORD_HEADER]
    cdef uint64_t held = 0
    if lookup_entry(p.index, p.log, hash, r.key, p.scratch, &entry) == NOT_FOUND:
        if not p.moving:
            index_insert(p.index, hash, at)
        return 0
    header = entry.at
    header.length = RECORD_HEADER
    # The version of a damaged record is not believed: whatever comes later replaces it.
    if not p.lost or (header.segment, header.offset) not in p.lost:
        if log_copy(p.log, header, raw) == 0:
            memcpy(&held, raw + 4, 8)
    if r.version > held and p.moving or r.version < held:
        return 0
    entry.at = at
    return 0


cdef int apply_good(Replay p, const Record* r, Location at) except -1:
    cdef Segment s = log_segment(p.log, at.segment)
    cdef Grave grave
    p.records += 1
    p.bytes += at.length
    s.records += 1
    s.min_version = min(s.min_version, r.version)
    s.max_version = max(s.max_version, r.version)
    if r.flags & (RECORD_KIND | RECORD_TOMBSTONE):
        s.buried += at.length
    if r.flags & RECORD_KIND:
        return 0
    if r.flags & RECORD_TOMBSTONE and p.moving:
        # A copy: its original stays listed until a checkpoint covers the copy, and has been replayed as the tombstone it is.
        return 0
    apply(p, r, at)
    if r.flags & RECORD_TOMBSTONE:
        # It stays in the index until all is read, to hide older records that come later.
        grave.hash = index_hash(p.index, r.key.ptr, r.key.len)
        grave.at = at
        bytebuf_append(p.tombstones, &grave, sizeof(Grave))
    if r.expires_at:
        deadlines_reserve(p.deadlines)
        deadlines_add(p.deadlines, r.expires_at, index_hash(p.index, r.key.ptr, r.key.len))
    return 0


# Account for a span of damaged bytes. Reading the key of a damaged record shall be an error, not an older value, so its
# entry stays in the index. Its version counts when it fits behind the one before it; otherwise the record wins.
cdef int replay_damage(Replay p, Segment s, Location at, const Span* span) except -1:
    cdef Record r
    cdef bytes key
    cdef list keys = []
    for offset, length, key, version, certain in walk_lost(p, s, span):
        keys.append((key, certain))
        if key is not None:
            at.offset = <uint32_t>offset
            at.length = <uint32_t>length
            r = record_of(0, slice_of(<const char*>key, len(key)), slice_of(NULL, 0), 0)
            r.version = version if p.previous < version <= walk_latest(p) else walk_latest(p)
            apply(p, &r, at)
            p.lost[(at.segment, at.offset)] = key
    return note_damage(p, s, span.start, span.end, DAMAGED, keys)


# A torn tail is no damage.
cdef int note_torn(Replay p, Segment s, uint64_t start, uint64_t end) except -1:
    p.torn_bytes = end - start
    if p.ranges is not None:
        p.ranges.append((s.path, start, end, TORN, []))
    else:
        p.messages.append(
            f"{os.fsdecode(s.path)} ended in a torn write: cut at byte {start}, {p.torn_bytes} bytes dropped")
    return 0


# The keys of the good records of a batch that does not count.
cdef list keys_between(Replay p, Segment s, uint64_t start, uint64_t end):
    cdef Record r
    cdef list keys = []
    while start < end:
        record_decode(walk_fetch(p, s, start, end - start, s.allocated), end - start, &r)
        keys.append((r.key.ptr[:r.key.len], True))
        start += r.size
    return keys


# Bytes that do not count; what is wrong with them; the keys of their records, and whether each is certain.
cdef int note_damage(Replay p, Segment s, uint64_t start, uint64_t end, str what, list keys) except -1:
    p.damaged_ranges += 1
    if p.ranges is None:
        # A saved order says where the keys were before the damage. The next opening may not see it: a checkpoint covers it.
        s.damaged = True
        files_unlink(s.files, order_path(s))
    if what != MISSING:
        p.damaged_bytes += end - start
    if p.ranges is not None:
        p.ranges.append((s.path, start, end, what, keys))
    elif what == MISSING:
        p.messages.append(
            f"{os.fsdecode(s.path)} ends at byte {start}, but {end} bytes were on the disk: {end - start} bytes are "
            "missing; restore it, or salvage what is left into a new directory")
    else:
        quarantine(p, s, start, end)
    return 0


# Keep the bytes [start, end) aside and tell. The copy is a courtesy: when it cannot be made, the original still stands.
cdef int quarantine(Replay p, Segment s, uint64_t start, uint64_t end) except -1:
    cdef Files files = s.files
    cdef bytes directory = os.path.join(p.log.path, b"quarantine")
    cdef bytes path = os.path.join(directory, b"%010d-%d.bin" % (s.id, start))
    cdef const uint8_t* data
    cdef uint64_t done = start
    cdef size_t n
    cdef int fd, result
    p.messages.append(
        f"{os.fsdecode(s.path)} is damaged from byte {start} to {end}: {end - start} bytes cannot be read as records; "
        f"a copy is kept in {os.fsdecode(path)}")
    files.call.mkdir(files.ctx, directory)
    fd = files.call.open(files.ctx, path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    result = min(fd, 0)
    while result == 0 and done < end:
        n = min(end - done, <uint64_t>KEPT)
        data = walk_fetch(p, s, done, n, s.allocated)
        result = files_write(files, fd, data, n, done - start)
        done += n
    if fd >= 0:
        files.call.close(files.ctx, fd)
    if result < 0:
        p.messages.append(f"the copy {os.fsdecode(path)} could not be made: {os.strerror(-result)}")
    return 0


# Apply the good records in [start, end): one, or a batch.
cdef int apply_range(Replay p, Segment s, uint32_t slot, uint64_t start, uint64_t end) except -1:
    cdef Record r
    cdef Location at
    at.segment = slot
    while start < end:
        record_decode(walk_fetch(p, s, start, end - start, s.allocated), end - start, &r)
        at.offset = <uint32_t>start
        at.length = <uint32_t>r.size
        apply_good(p, &r, at)
        start += r.size
    return 0


# The good records in [start, end) are part of a batch that never was whole. They must not count later either, when something
# proves that they were on the disk; so they become one record that says nothing, a commit of no batch. Raises StorageError.
cdef int void_batch(Replay p, Segment s, uint64_t start, uint64_t end) except -1:
    cdef size_t n = end - start
    cdef const uint8_t* data = walk_fetch(p, s, start, n, s.allocated)
    cdef uint8_t* dst
    cdef Record r, void
    cdef int result
    record_decode(data, n, &r)
    void = record_of(RECORD_COMMIT, slice_of(NULL, 0), slice_of(data + RECORD_HEADER, n - RECORD_HEADER), 0)
    void.version = r.version
    dst = bytebuf_reserve(p.scratch, n)
    record_encode(dst, &void, s.seed)
    with nogil:
        result = files_write(s.files, s.fd, dst, RECORD_HEADER, start)
    files_check(result, "write", s.path)
    p.window.len = 0
    return 0


cdef int replay_segment(Replay p, uint32_t slot, uint64_t start, uint64_t data_end, bint last) except -1:
    cdef Segment s = log_segment(p.log, slot)
    cdef Span span
    cdef SpanKind kind
    cdef Location at
    at.segment = slot
    walk_begin(p, start)
    if start > SEGMENT_HEADER:
        p.previous = s.max_version      # of what the checkpoint covers
    while True:
        kind = walk_step(p, s, data_end, last, &span)
        if kind == SPAN_GOOD:
            apply_range(p, s, slot, span.start, span.end)
        elif kind == SPAN_DAMAGED:
            replay_damage(p, s, at, &span)
        elif kind == SPAN_BROKEN:
            note_damage(p, s, span.start, span.end, HALF_BATCH, keys_between(p, s, span.start, span.end))
            if p.ranges is None:
                void_batch(p, s, span.start, span.end)
        else:
            break
    if kind == SPAN_TORN:
        note_torn(p, s, span.start, span.end)
    s.flushed = p.offset
    if s.id == p.synced_id and s.flushed < p.synced_offset:
        note_damage(p, s, s.flushed, p.synced_offset, MISSING, [(None, False)])
    if s.sealed and not s.compacted:
        walk_note_synced(p, s.id, s.flushed)
    return 0


cdef int replay_note_covered(Replay p, dict covered) except -1:
    cdef Segment s
    for s in p.log.segments:
        # The number of a compacted one says nothing about what was written when. An empty one is not reached yet.
        if not s.compacted and covered.get(s.id, 0) > SEGMENT_HEADER:
            walk_note_synced(p, s.id, covered[s.id])
    return 0


cdef int replay_finish(Replay p) except -1:
    cdef Grave* grave = <Grave*>p.tombstones.data
    cdef size_t i
    cdef Entry* entry
    for i in range(p.tombstones.len // sizeof(Grave)):
        entry = index_find(p.index, grave[i].hash, grave[i].at.segment, grave[i].at.offset)
        if entry != NULL:
            index_remove(p.index, grave[i].hash, entry)
    bytebuf_clear(p.tombstones, 0)
    bytebuf_clear(p.window, 0)
    return 0


def replay_key(Segment s not None):
    return (not s.sealed, s.min_version if s.sealed else 0, s.id)


def id_of(Segment s not None):
    return s.id


cdef list replay_plan(Replay p):
    cdef Segment s
    cdef dict ends = {}
    cdef uint32_t last = 0
    # The newest first: when somebody is writing, one that has a successor with records is seen to its very end.
    for s in sorted(p.log.segments, key=id_of, reverse=True):
        if s.sealed:
            ends[s.slot] = s.allocated
            continue
        if p.ranges is not None:
            look_again(s)
        ends[s.slot] = walk_data_end(p, s)
        if last == 0 and ends[s.slot] > SEGMENT_HEADER:
            last = s.id
    return [(s.slot, ends[s.slot], s.id == last) for s in sorted(p.log.segments, key=replay_key)]


# A segment of a directory that is not ours may have grown since it was opened.
cdef int look_again(Segment s) except -1:
    s.allocated = min(files_check(s.files.call.size(s.files.ctx, s.fd), "examine", s.path), <int64_t>SEGMENT_LIMIT)
    return segment_map(s, s.allocated)
