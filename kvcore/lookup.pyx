import os

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp

from kvcore.bytebuf cimport bytebuf_reserve
from kvcore.hashindex cimport index_first, index_hash, index_next, index_prefetch
from kvcore.log cimport log_copy, log_key_equal, log_prefetch, log_segment
from kvcore.record cimport RECORD_DEADLINE, RECORD_HEADER, crc32c_of, record_decode, record_verify
from kvcore.types cimport MAX_KEY_SIZE, uint8_t

from kvcore.errors import CorruptionError


cdef enum:
    LONG = 4096                 # bytes of a record from which to move its value costs more than to copy it by itself

# Where long records are read to, but for their values. Nothing in it outlives a call.
cdef ByteBuf head = ByteBuf()


cdef Found lookup_record(Log log, Location at, ByteBuf out, Record* r) except? NOT_FOUND:
    cdef uint8_t* copy = bytebuf_reserve(out, at.length)
    r.size = 0
    if log_copy(log, at, copy) < 0 or record_decode(copy, at.length, r) < 0 or r.size != at.length:
        return DAMAGED
    return FOUND if record_verify(copy, r, log_segment(log, at.segment).seed) else DAMAGED


# The same for a long record whose value alone is wanted: it is copied to where it is to stay, the rest to `head`.
cdef Found read_value(Log log, Location at, ByteBuf out, Record* r) except? NOT_FOUND:
    cdef uint8_t* start = bytebuf_reserve(head, RECORD_HEADER + RECORD_DEADLINE + MAX_KEY_SIZE)
    cdef uint8_t* value
    cdef size_t n
    cdef int64_t checksum
    if log_copy(log, Location(at.segment, at.offset, RECORD_HEADER + RECORD_DEADLINE), start) < 0 or (
            record_decode(start, at.length, r) < 0 or r.size != at.length):
        return DAMAGED
    n = r.value.ptr - start
    value = bytebuf_reserve(out, r.value.len)
    if log_copy(log, Location(at.segment, at.offset, <uint32_t>n), start) < 0 or (
            log_copy(log, Location(at.segment, at.offset + <uint32_t>n, <uint32_t>r.value.len), value) < 0):
        return DAMAGED
    checksum = crc32c_of(start + 4, n - 4, log_segment(log, at.segment).seed)
    checksum = crc32c_of(value, r.value.len, <uint32_t>checksum)
    # What was believed to find the value's place is read once more, now that it is proven.
    if record_decode(start, at.length, r) < 0 or r.value.ptr != start + n or checksum != r.checksum:
        return DAMAGED
    r.value.ptr = value
    return FOUND


cdef Found lookup_entry(
        HashIndex index, Log log, uint64_t hash, Slice key, ByteBuf scratch, Entry** entry) except? NOT_FOUND:
    cdef Entry* candidate = index_first(index, hash)
    cdef Entry* damaged = NULL
    cdef Record r
    cdef int equal
    while candidate != NULL:
        equal = log_key_equal(log, candidate.at, key)
        if equal == 1:
            entry[0] = candidate
            return FOUND
        if equal == -1 or lookup_record(log, candidate.at, scratch, &r) == DAMAGED:
            damaged = candidate
        candidate = index_next(index, hash, candidate)
    entry[0] = damaged
    return NOT_FOUND if damaged == NULL else DAMAGED


cdef Found lookup_read(
        HashIndex index, Log log, uint64_t hash, Slice key, ByteBuf out, Record* r, Location* at) except? NOT_FOUND:
    cdef Entry* candidate = index_first(index, hash)
    cdef Found found, result = NOT_FOUND
    while candidate != NULL:
        at[0] = candidate.at
        found = read_value(log, at[0], out, r) if at.length > LONG else lookup_record(log, at[0], out, r)
        if found == DAMAGED:
            result = DAMAGED
        elif r.key.len == key.len and memcmp(r.key.ptr, key.ptr, key.len) == 0:
            return FOUND
        candidate = index_next(index, hash, candidate)
    return result


cdef void lookup_expect(HashIndex index, Log log, const Slice* keys, size_t n) noexcept:
    while n > LOOKUP_AHEAD:
        expect(index, log, keys, LOOKUP_AHEAD)
        keys += LOOKUP_AHEAD
        n -= LOOKUP_AHEAD
    expect(index, log, keys, n)


cdef void expect(HashIndex index, Log log, const Slice* keys, size_t n) noexcept:
    cdef uint64_t[LOOKUP_AHEAD] hashes
    cdef Entry* entry
    cdef size_t i
    for i in range(n):
        hashes[i] = index_hash(index, keys[i].ptr, keys[i].len)
        index_prefetch(index, hashes[i])
    for i in range(n):
        entry = index_first(index, hashes[i])
        if entry != NULL:
            log_prefetch(log, entry.at)


cdef int lookup_damaged(Log log, Location at) except -1:
    path = os.fsdecode(log_segment(log, at.segment).path)
    raise CorruptionError(f"the record at byte {at.offset} of {path} is damaged; write or delete its key to go on")
