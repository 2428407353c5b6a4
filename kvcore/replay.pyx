import os

from libc.string cimport memcpy
from posix.fcntl cimport O_CREAT, O_TRUNC, O_WRONLY

from kvcore.bytebuf cimport bytebuf_append, bytebuf_clear, bytebuf_reserve
from kvcore.expiry cimport deadlines_add, deadlines_reserve
from kvcore.files cimport Files, files_check, files_read, files_write
from kvcore.hashindex cimport Entry, index_first, index_hash, index_insert, index_next, index_remove
from kvcore.log cimport log_copy, log_segment
from kvcore.lookup cimport NOT_FOUND, lookup_entry
from kvcore.record cimport (
    COMMIT_SIZE, MARK_SIZE, RECORD_COMMIT, RECORD_HEADER, RECORD_KIND, RECORD_MARK, RECORD_MORE, RECORD_TOMBSTONE, Record,
    record_decode, record_verify, record_wrong_bit)
from kvcore.segment cimport SEGMENT_HEADER
from kvcore.types cimport Location, uint8_t

from kvcore.errors import StorageError


cdef enum:
    CHUNK = 1 << 20             # bytes read at a time
    SEARCHED = 16 << 20         # bytes of a damaged record up to which a single wrong bit is looked for
    SEARCH_FACTOR = 16          # a search for the next good record checksums at most so many times the bytes searched

cdef uint64_t OLDEST = <uint64_t>1577836800000 << 20        # version of 2020-01-01
cdef uint64_t DAY = <uint64_t>86400000 << 20


cdef struct Grave:
    uint64_t hash
    Location at


cdef class Replay:
    """One opening of a directory. Made by kvcore.recovery only."""

    def __cinit__(self, Log log not None, HashIndex index not None, Deadlines deadlines not None):
        self.log = log
        self.index = index
        self.deadlines = deadlines
        self.window = ByteBuf()
        self.scratch = ByteBuf()
        self.tombstones = ByteBuf()
        self.lost = set()
        self.messages = []
        self.newest = log.last_version
        self.latest_version = (<uint64_t>max(log.files.call.clock(log.files.ctx), <int64_t>0) << 20) + DAY


# At least n bytes of the segment from `offset` on, or all up to `end`: a pointer to them, valid until the next fetch.
cdef const uint8_t* fetch(Replay p, Segment s, uint64_t offset, size_t n, uint64_t end) except NULL:
    cdef uint64_t have = p.window_at + p.window.len
    cdef uint64_t wanted
    cdef uint8_t* dst
    cdef ssize_t got
    if offset >= p.window_at and offset + min(<uint64_t>n, end - offset) <= have:
        return p.window.data + (offset - p.window_at)
    p.window.len = 0
    p.window_at = offset
    wanted = min(<uint64_t>max(n, <size_t>CHUNK), end - offset)
    dst = bytebuf_reserve(p.window, wanted)
    with nogil:
        got = files_read(s.files, s.fd, dst, wanted, offset)
    files_check(got, "read", s.path)
    if <uint64_t>got < wanted:
        raise StorageError(f"cannot read {os.fsdecode(s.path)}: it became shorter while it was read")
    p.window.len = got
    return p.window.data


cdef uint64_t replay_data_end(Replay p, Segment s) except 0:
    cdef uint64_t end = s.allocated, start
    cdef const uint8_t* data
    cdef size_t n
    p.window.len = 0
    while end > SEGMENT_HEADER:
        n = min(end - SEGMENT_HEADER, <uint64_t>CHUNK)
        start = end - n
        data = fetch(p, s, start, n, end)
        while n and data[n - 1] == 0:
            n -= 1
        if n:
            end = start + n
            break
        end = start
    p.window.len = 0
    return max(end, <uint64_t>SEGMENT_HEADER)


# 1 when a whole good record stands at offset, else 0; r describes it, or what its lengths claim (r.size 0: they do not fit).
cdef int good_record(Replay p, Segment s, uint64_t offset, Record* r) except -1:
    cdef const uint8_t* data = fetch(p, s, offset, RECORD_HEADER, s.allocated)
    cdef uint64_t available = s.allocated - offset
    if record_decode(data, available, r) < 0:
        return 0
    data = fetch(p, s, offset, r.size, s.allocated)
    record_decode(data, available, r)
    return record_verify(data, r, s.seed)


# The version below which plausible ones lie. A clock that was ahead when the records around were written is as plausible
# as the one of today.
cdef inline uint64_t latest(Replay p) noexcept:
    return max(p.latest_version, p.newest + DAY)


# The next good record from `offset` on, or `end`. 0 when the search was given up: that many false starts are either
# an attack or a broken disk, and searching on would take for ever.
cdef uint64_t next_good(Replay p, Segment s, uint64_t offset, uint64_t end) except? 0:
    cdef uint64_t budget = (end - offset) * SEARCH_FACTOR + CHUNK
    cdef uint64_t from_version = min(OLDEST, p.newest, s.min_version), to_version = max(latest(p), s.max_version)
    cdef const uint8_t* data
    cdef Record r
    while offset + RECORD_HEADER <= end:
        data = fetch(p, s, offset, RECORD_HEADER, s.allocated)
        if record_decode(data, s.allocated - offset, &r) == 0 and from_version <= r.version <= to_version:
            if r.size > budget:
                return 0
            budget -= r.size
            if good_record(p, s, offset, &r):
                return offset
        offset += 1
    return end


cdef bint replay_finds_record(Replay p, Segment s) except -1:
    cdef uint64_t data_end = replay_data_end(p, s)
    # Whatever the time it claims; and a search that is given up (0) proves nothing.
    p.newest = 0
    p.latest_version = <uint64_t>-1
    found = data_end > SEGMENT_HEADER and next_good(p, s, SEGMENT_HEADER, data_end) != data_end
    p.window.len = 0
    return found


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
    p.newest = max(p.newest, r.version)
    s.records += 1
    s.min_version = min(s.min_version, r.version)
    s.max_version = max(s.max_version, r.version)
    if r.flags & (RECORD_KIND | RECORD_TOMBSTONE):
        s.buried += at.length
    if r.flags & RECORD_KIND:
        if r.flags & RECORD_KIND == RECORD_MARK:
            note_mark(p, r)
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


# Reading the key of a damaged record shall be an error, not an older value, so its entry stays in the index. The key is
# certain when a single wrong bit explains the damage; else it is taken as it stands, if the lengths were right (`framed`).
# Its version counts when it fits behind the one before it; otherwise the record wins. 1, or 0 when the key is unknown.
cdef bint apply_lost(Replay p, Segment s, Location at, bint framed, uint64_t previous) except -1:
    cdef uint8_t* data = <uint8_t*>fetch(p, s, at.offset, at.length, s.allocated)
    cdef int64_t bit = record_wrong_bit(data, at.length, s.seed) if RECORD_HEADER <= at.length <= SEARCHED else -1
    cdef Record r
    cdef bint known
    if bit >= 0:
        data[bit // 8] ^= 1 << bit % 8
    known = (framed or bit >= 0) and record_decode(data, at.length, &r) == 0 and r.size == at.length and (
        r.flags & RECORD_KIND == 0)
    if known:
        if not previous < r.version <= latest(p):
            r.version = latest(p)
        apply(p, &r, at)
        p.lost.add((at.segment, at.offset))
    if bit >= 0:
        data[bit // 8] ^= 1 << bit % 8
    return known


# Where the bad records from offset on end, by their lengths, if that leads to `after` (or, when no good record follows
# there, behind it: a value may end in zeros); else 0.
cdef uint64_t frames_end(Replay p, Segment s, uint64_t offset, uint64_t after, bint last) except? 0:
    cdef Record r
    while offset < after:
        if record_decode(fetch(p, s, offset, RECORD_HEADER, s.allocated), s.allocated - offset, &r) < 0:
            return 0
        offset += r.size
    return offset if offset == after or last else 0


# Account for the damaged bytes from offset to `after`; returns where they really end.
cdef uint64_t replay_damage(Replay p, Segment s, Location at, uint64_t after, bint last, uint64_t previous) except 0:
    cdef uint64_t start = at.offset, offset = at.offset
    cdef uint64_t end = frames_end(p, s, offset, after, last)
    cdef Record r
    after = end or after
    while offset < after:
        at.offset = <uint32_t>offset
        at.length = <uint32_t>(after - offset)
        if end:
            record_decode(fetch(p, s, offset, RECORD_HEADER, s.allocated), s.allocated - offset, &r)
            at.length = <uint32_t>r.size
        apply_lost(p, s, at, end != 0, previous)
        offset += at.length
    quarantine(p, s, start, after)
    return after


cdef void note_mark(Replay p, const Record* r) noexcept:
    cdef uint64_t id
    cdef uint32_t offset
    if r.value.len != MARK_SIZE:
        return
    memcpy(&id, r.value.ptr, 8)
    memcpy(&offset, r.value.ptr + 8, 4)
    note_synced(p, <uint32_t>id, offset)


cdef void note_synced(Replay p, uint32_t id, uint64_t offset) noexcept:
    if id > p.synced_id or (id == p.synced_id and offset > p.synced_offset):
        p.synced_id = id
        p.synced_offset = offset


# Keep the bytes [start, end) aside and tell. The copy is a courtesy: when it cannot be made, the original still stands.
cdef int quarantine(Replay p, Segment s, uint64_t start, uint64_t end) except -1:
    cdef Files files = s.files
    cdef bytes directory = os.path.join(p.log.path, b"quarantine")
    cdef bytes path = os.path.join(directory, b"%010d-%d.bin" % (s.id, start))
    cdef const uint8_t* data
    cdef uint64_t done = start
    cdef size_t n
    cdef int fd, result
    p.damaged_ranges += 1
    p.damaged_bytes += end - start
    p.messages.append(
        f"{os.fsdecode(s.path)} is damaged from byte {start} to {end}: {end - start} bytes cannot be read as records; "
        f"a copy is kept in {os.fsdecode(path)}")
    files.call.mkdir(files.ctx, directory)
    fd = files.call.open(files.ctx, path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    result = min(fd, 0)
    while result == 0 and done < end:
        n = min(end - done, <uint64_t>CHUNK)
        data = fetch(p, s, done, n, s.allocated)
        result = files_write(files, fd, data, n, done - start)
        done += n
    if fd >= 0:
        files.call.close(files.ctx, fd)
    if result < 0:
        p.messages.append(f"the copy {os.fsdecode(path)} could not be made: {os.strerror(-result)}")
    return 0


# Is it proven that the log was on the disk beyond this position?
cdef inline bint is_proven(Replay p, Segment s, uint64_t offset) noexcept:
    return s.sealed or s.id < p.synced_id or (s.id == p.synced_id and offset < p.synced_offset)


# Apply the good records in [start, end): one, or a batch.
cdef int apply_range(Replay p, Segment s, uint32_t slot, uint64_t start, uint64_t end) except -1:
    cdef Record r
    cdef Location at
    at.segment = slot
    while start < end:
        record_decode(fetch(p, s, start, end - start, s.allocated), end - start, &r)
        at.offset = <uint32_t>start
        at.length = <uint32_t>r.size
        apply_good(p, &r, at)
        start += r.size
    return 0


# The good records in [batch, offset) claim that more of their batch follows. Do they end with a commit that counts them?
cdef bint is_whole(Replay p, Segment s, uint64_t batch, uint64_t offset, const Record* commit) except -1:
    cdef uint32_t count, found = 0
    cdef Record r
    if commit.flags & RECORD_KIND != RECORD_COMMIT or commit.value.len != COMMIT_SIZE:
        return False
    memcpy(&count, commit.value.ptr, COMMIT_SIZE)
    while batch < offset:
        record_decode(fetch(p, s, batch, RECORD_HEADER, s.allocated), s.allocated - batch, &r)
        found += 1
        batch += r.size
    return found == count


cdef int replay_segment(Replay p, uint32_t slot, uint64_t start, uint64_t data_end, bint last) except -1:
    cdef Segment s = log_segment(p.log, slot)
    cdef uint64_t offset = start, batch = start, after, previous = 0
    cdef Record r
    cdef Location at
    p.window.len = 0
    at.segment = slot
    # [batch, offset): good records that are followed by more of their batch.
    while offset < data_end or batch < offset:
        if offset < data_end and good_record(p, s, offset, &r):
            if r.flags & RECORD_MORE == 0:
                if batch < offset and not is_proven(p, s, offset) and not is_whole(p, s, batch, offset, &r):
                    # Never known to be on the disk, and its beginning or its end is not: none of it counts.
                    quarantine(p, s, batch, offset)
                else:
                    apply_range(p, s, slot, batch, offset)
                good_record(p, s, offset, &r)
                apply_range(p, s, slot, offset, offset + r.size)
                batch = offset + r.size
            offset += r.size
            previous = r.version
            continue
        if batch < offset and is_proven(p, s, offset):
            # All of the batch was on the disk once: what is good of it counts.
            apply_range(p, s, slot, batch, offset)
            batch = offset
            continue
        after = next_good(p, s, offset + 1, data_end) if offset < data_end else data_end
        if after == data_end and last and not is_proven(p, s, batch):
            p.torn_bytes = data_end - batch
            p.messages.append(
                f"{os.fsdecode(s.path)} ended in a torn write: cut at byte {batch}, {p.torn_bytes} bytes dropped")
            offset = batch
            break
        if batch < offset:
            quarantine(p, s, batch, offset)
        if offset < data_end:
            at.offset = <uint32_t>offset
            offset = replay_damage(p, s, at, after or data_end, after in (0, data_end), previous)
        batch = offset
    s.flushed = offset
    if s.id == p.synced_id and offset < p.synced_offset:
        p.damaged_ranges += 1
        p.messages.append(
            f"{os.fsdecode(s.path)} ends at byte {offset}, but {p.synced_offset} bytes were on the disk: "
            f"{p.synced_offset - offset} bytes are missing; restore it, or salvage what is left into a new directory")
    return 0


cdef int replay_finish(Replay p) except -1:
    cdef Grave* grave = <Grave*>p.tombstones.data
    cdef size_t i
    cdef Entry* entry
    for i in range(p.tombstones.len // sizeof(Grave)):
        entry = index_first(p.index, grave[i].hash)
        while entry != NULL:
            if entry.at.segment == grave[i].at.segment and entry.at.offset == grave[i].at.offset:
                index_remove(p.index, grave[i].hash, entry)
                break
            entry = index_next(p.index, grave[i].hash, entry)
    bytebuf_clear(p.tombstones, 0)
    bytebuf_clear(p.window, 0)
    return 0
