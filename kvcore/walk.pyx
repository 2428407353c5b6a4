import os

from libc.string cimport memcpy, memset

from kvcore.bytebuf cimport bytebuf_reserve
from kvcore.files cimport files_check, files_read
from kvcore.record cimport (
    COMMIT_SIZE, MARK_SIZE, RECORD_COMMIT, RECORD_HEADER, RECORD_KIND, RECORD_MARK, RECORD_MORE, record_decode, record_seed,
    record_verify, record_wrong_bit)
from kvcore.segment cimport SEGMENT_HEADER

from kvcore.errors import StorageError


cdef enum:
    CHUNK = 1 << 20             # bytes read at a time
    BLOCK = 4096                # bytes of a disk that fail together
    WRONG_BIT = 16 << 20        # bytes of a damaged record up to which a single wrong bit is looked for
    SEARCH_FACTOR = 16          # a search for the next good record checksums at most so many times the bytes searched

cdef uint64_t OLDEST = <uint64_t>1577836800000 << 20        # version of 2020-01-01


cdef class Walk:
    """One reader of segments. Made by the engine only."""

    def __cinit__(self):
        self.window = ByteBuf()
        self.chunk = CHUNK


cdef void walk_begin(Walk w, uint64_t start) noexcept:
    w.window.len = 0
    w.offset = w.batch = start
    w.looked = False
    w.previous = 0


cdef const uint8_t* walk_fetch(Walk w, Segment s, uint64_t offset, size_t n, uint64_t end) except NULL:
    cdef uint64_t have = w.window_at + w.window.len
    cdef uint64_t wanted
    cdef uint8_t* dst
    cdef ssize_t got
    if offset >= w.window_at and offset + min(<uint64_t>n, end - offset) <= have:
        return w.window.data + (offset - w.window_at)
    w.window.len = 0
    w.window_at = offset
    wanted = min(<uint64_t>max(n, w.chunk), end - offset)
    dst = bytebuf_reserve(w.window, wanted)
    with nogil:
        got = files_read(s.files, s.fd, dst, wanted, offset)
    if w.lenient:
        if got < <ssize_t>wanted:
            read_blocks(w, s, dst, wanted, offset)
        got = wanted
    files_check(got, "read", s.path)
    if <uint64_t>got < wanted:
        raise StorageError(f"cannot read {os.fsdecode(s.path)}: it became shorter while it was read")
    w.window.len = got
    return w.window.data


# What can be read of n bytes, with zeros in the place of what cannot.
cdef void read_blocks(Walk w, Segment s, uint8_t* dst, size_t n, uint64_t offset) noexcept nogil:
    cdef size_t size, done = 0
    cdef ssize_t got
    memset(dst, 0, n)
    while done < n:
        size = min(n - done, BLOCK - (offset + done) % BLOCK)
        got = files_read(s.files, s.fd, dst + done, size, offset + done)
        if got < 0:
            w.unreadable = True
        done += size


cdef uint64_t walk_data_end(Walk w, Segment s) except 0:
    cdef uint64_t end = s.allocated, start
    cdef const uint8_t* data
    cdef size_t n
    w.window.len = 0
    while end > SEGMENT_HEADER:
        n = min(end - SEGMENT_HEADER, <uint64_t>CHUNK)
        start = end - n
        data = walk_fetch(w, s, start, n, end)
        while n and data[n - 1] == 0:
            n -= 1
        if n:
            end = start + n
            break
        end = start
    w.window.len = 0
    return max(end, <uint64_t>SEGMENT_HEADER)


# 1 when a whole good record stands at offset, else 0; r describes it, or what its lengths claim (r.size 0: they do not fit).
cdef int good_record(Walk w, Segment s, uint64_t offset, Record* r) except -1:
    cdef const uint8_t* data = walk_fetch(w, s, offset, RECORD_HEADER, s.allocated)
    cdef uint64_t available = s.allocated - offset
    if record_decode(data, available, r) < 0:
        return 0
    data = walk_fetch(w, s, offset, r.size, s.allocated)
    record_decode(data, available, r)
    return record_verify(data, r, s.seed)


# The next good record from `offset` on, or `end`. 0 when the search was given up: that many false starts are either
# an attack or a broken disk, and searching on would take for ever.
cdef uint64_t next_good(Walk w, Segment s, uint64_t offset, uint64_t end) except? 0:
    cdef uint64_t budget = (end - offset) * SEARCH_FACTOR + CHUNK
    cdef uint64_t from_version = min(OLDEST, w.newest, s.min_version), to_version = max(walk_latest(w), s.max_version)
    cdef const uint8_t* data
    cdef Record r
    while offset + RECORD_HEADER <= end:
        data = walk_fetch(w, s, offset, RECORD_HEADER, s.allocated)
        if record_decode(data, s.allocated - offset, &r) == 0 and from_version <= r.version <= to_version:
            if r.size > budget:
                return 0
            budget -= r.size
            if good_record(w, s, offset, &r):
                return offset
        offset += 1
    return end


cdef bint walk_finds_record(Walk w, Segment s) except -1:
    cdef uint64_t data_end = walk_data_end(w, s)
    # Whatever the time it claims; and a search that is given up (0) proves nothing.
    w.newest = 0
    w.latest_version = <uint64_t>-1
    found = data_end > SEGMENT_HEADER and next_good(w, s, SEGMENT_HEADER, data_end) != data_end
    w.window.len = 0
    return found


# The seed that makes the record at offset a good one, if its lengths fit and its version is plausible; else -1.
# r describes it.
cdef int64_t seed_at(Walk w, Segment s, uint64_t offset, uint64_t end, Record* r) except? -2:
    if offset + RECORD_HEADER > end:
        return -1
    if record_decode(walk_fetch(w, s, offset, RECORD_HEADER, s.allocated), s.allocated - offset, r) < 0:
        return -1
    if not OLDEST <= r.version <= walk_latest(w):
        return -1
    return record_seed(walk_fetch(w, s, offset, r.size, s.allocated), r.size)


cdef int64_t walk_find_seed(Walk w, Segment s, set hints) except? -2:
    cdef uint64_t end = walk_data_end(w, s), offset = SEGMENT_HEADER, budget = end * SEARCH_FACTOR + CHUNK
    cdef int64_t seed
    cdef Record r, after
    while offset + RECORD_HEADER <= end:
        seed = seed_at(w, s, offset, end, &r)
        if seed >= 0:
            if seed in hints or seed_at(w, s, offset + r.size, end, &after) == seed:
                return seed
            if r.size > budget:
                return -1
            budget -= r.size
        offset += 1
    return -1


cdef void note_mark(Walk w, const Record* r) noexcept:
    cdef uint64_t id
    cdef uint32_t offset
    if r.value.len != MARK_SIZE:
        return
    memcpy(&id, r.value.ptr, 8)
    memcpy(&offset, r.value.ptr + 8, 4)
    walk_note_synced(w, <uint32_t>id, offset)


cdef void walk_note_synced(Walk w, uint32_t id, uint64_t offset) noexcept:
    if id > w.synced_id or (id == w.synced_id and offset > w.synced_offset):
        w.synced_id = id
        w.synced_offset = offset


# Is it proven that the log was on the disk beyond this position?
cdef inline bint is_proven(Walk w, Segment s, uint64_t offset) noexcept:
    return s.sealed or s.id < w.synced_id or (s.id == w.synced_id and offset < w.synced_offset)


# Note the marks ahead: one behind a batch that is not whole may prove that it was on the disk. Done once a segment: False
# when it was before.
cdef bint look_ahead(Walk w, Segment s, uint64_t data_end) except -1:
    cdef uint64_t offset = w.offset
    cdef Record r
    if w.looked:
        return False
    w.looked = True
    while 0 < offset < data_end:
        if good_record(w, s, offset, &r):
            if r.flags & RECORD_KIND == RECORD_MARK:
                note_mark(w, &r)
            offset += r.size
        else:
            offset = next_good(w, s, offset + 1, data_end)
    return True


# The good records in [w.batch, w.offset) claim that more of their batch follows. Do they end with a commit that counts
# them?
cdef bint is_whole(Walk w, Segment s, const Record* commit) except -1:
    cdef uint64_t batch = w.batch
    cdef uint32_t count, found = 0
    cdef Record r
    if commit.flags & RECORD_KIND != RECORD_COMMIT or commit.value.len != COMMIT_SIZE:
        return False
    memcpy(&count, commit.value.ptr, COMMIT_SIZE)
    while batch < w.offset:
        record_decode(walk_fetch(w, s, batch, RECORD_HEADER, s.allocated), s.allocated - batch, &r)
        found += 1
        batch += r.size
    return found == count


# Where the bad records from offset on end, by their lengths, if that leads to `after` (or, when no good record follows
# there, behind it: a value may end in zeros); else 0.
cdef uint64_t frames_end(Walk w, Segment s, uint64_t offset, uint64_t after, bint last) except? 0:
    cdef Record r
    while offset < after:
        if record_decode(walk_fetch(w, s, offset, RECORD_HEADER, s.allocated), s.allocated - offset, &r) < 0:
            return 0
        offset += r.size
    return offset if offset == after or last else 0


# All from w.batch to `end` is the span; the walk goes on behind it.
cdef inline SpanKind take(Walk w, SpanKind kind, uint64_t end, Span* span) noexcept:
    span.start = w.batch
    span.end = w.batch = w.offset = end
    return kind


cdef SpanKind walk_step(Walk w, Segment s, uint64_t data_end, bint last, Span* span) except? SPAN_END:
    cdef uint64_t after, end
    cdef Record r
    span.framed = False
    while w.offset < data_end or w.batch < w.offset:
        if w.offset < data_end and good_record(w, s, w.offset, &r):
            w.newest = max(w.newest, r.version)
            w.previous = r.version
            if r.flags & RECORD_MORE:
                w.offset += r.size
                continue
            if w.batch < w.offset and not is_proven(w, s, w.offset) and not is_whole(w, s, &r):
                if look_ahead(w, s, data_end):
                    continue
                # Never known to be on the disk, and its beginning or its end is not: none of it counts.
                return take(w, SPAN_BROKEN, w.offset, span)
            if r.flags & RECORD_KIND == RECORD_MARK:
                note_mark(w, &r)
            return take(w, SPAN_GOOD, w.offset + r.size, span)
        if w.batch < w.offset and is_proven(w, s, w.offset):
            # All of the batch was on the disk once: what is good of it counts.
            return take(w, SPAN_GOOD, w.offset, span)
        if w.batch < w.offset and look_ahead(w, s, data_end):
            continue
        after = next_good(w, s, w.offset + 1, data_end) if w.offset < data_end else data_end
        if after == data_end and last and not is_proven(w, s, w.batch):
            take(w, SPAN_TORN, data_end, span)
            w.batch = w.offset = span.start
            return SPAN_TORN
        if w.batch < w.offset:
            return take(w, SPAN_BROKEN, w.offset, span)
        end = frames_end(w, s, w.offset, after or data_end, after in (0, data_end))
        take(w, SPAN_DAMAGED, end or after or data_end, span)
        span.framed = end != 0
        return SPAN_DAMAGED
    return SPAN_END


# (key, version, certain) of the n damaged bytes at offset, if they are one record: certain when a single wrong bit
# explains the damage; else as it stands there, if the lengths were right (`framed`). None when the key cannot be known.
cdef tuple lost_record(Walk w, Segment s, uint64_t offset, size_t n, bint framed):
    cdef uint8_t* data = <uint8_t*>walk_fetch(w, s, offset, n, s.allocated)
    cdef int64_t bit = record_wrong_bit(data, n, s.seed) if RECORD_HEADER <= n <= WRONG_BIT else -1
    cdef Record r
    cdef bytes key = None
    if bit >= 0:
        data[bit // 8] ^= 1 << bit % 8
    if (framed or bit >= 0) and record_decode(data, n, &r) == 0 and r.size == n and r.flags & RECORD_KIND == 0:
        key = r.key.ptr[:r.key.len]
    if bit >= 0:
        data[bit // 8] ^= 1 << bit % 8
    return key, r.version if key is not None else 0, key is not None and bit >= 0


cdef list walk_lost(Walk w, Segment s, const Span* span):
    cdef uint64_t offset = span.start
    cdef size_t n
    cdef Record r
    cdef list found = []
    while offset < span.end:
        n = span.end - offset
        if span.framed:
            record_decode(walk_fetch(w, s, offset, RECORD_HEADER, s.allocated), s.allocated - offset, &r)
            n = r.size
        key, version, certain = lost_record(w, s, offset, n, span.framed)
        found.append((offset, n, key, version, certain))
        offset += n
    return found
