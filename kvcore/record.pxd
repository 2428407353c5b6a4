"""Encode, decode and verify one record. Mirrors docs/format.md ("Record"); no I/O, no state.

     0        4         12          16        19      20             28
     | crc32c | version | value_len | key_len | flags | [expires_at] | key ... | value ... |
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kvcore.types cimport MAX_KEY_SIZE, MAX_VALUE_SIZE, Slice, uint8_t


cdef enum:
    RECORD_HEADER = 20          # bytes before the deadline or the key
    RECORD_DEADLINE = 8         # bytes of a deadline
    RECORD_TOMBSTONE = 0x01     # flags
    RECORD_EXPIRES = 0x02
    RECORD_COMPRESSED = 0x04
    RECORD_MORE = 0x08
    RECORD_KIND = 0xF0          # the bits of flags that hold the kind
    RECORD_MARK = 0x10          # kind 1
    RECORD_COMMIT = 0x20        # kind 2
    MARK_SIZE = 12              # value of a mark: segment id u64 | offset u32
    COMMIT_SIZE = 4             # value of a commit: number of records u32


cdef struct Record:
    uint32_t checksum
    uint64_t version
    uint8_t flags
    uint64_t expires_at         # unix milliseconds; 0: never
    Slice key                   # both point into the bytes that were decoded
    Slice value
    size_t size                 # of the whole record


# CRC-32C of n bytes, going on from `seed`. Raises MemoryError.
cdef int64_t crc32c_of(const void* data, size_t n, uint32_t seed) except -1 nogil

# Write the record (its version, flags, expires_at, key and value; RECORD_EXPIRES follows from expires_at) of record_size
# bytes at dst, whose key and value must lie elsewhere. Raises MemoryError.
cdef int record_encode(uint8_t* dst, const Record* r, uint32_t seed) except -1 nogil

# Does the checksum of the decoded record at `data` hold? 1 or 0. Raises MemoryError.
cdef int record_verify(const uint8_t* data, const Record* r, uint32_t seed) except -1 nogil


# When the n bytes at `data` are a whole record in which one single bit is wrong: the number of that bit, counted from the
# lowest of the first byte. -1 when one bit does not explain the checksum. Finds the key of a damaged record, never a
# value: by chance one in 2^32 / 8n other damages looks like a single bit.
cdef int64_t record_wrong_bit(const uint8_t* data, size_t n, uint32_t seed) except? -2

# The seed with which the checksum of the whole record of n bytes at `data` holds: there is always exactly one. Raises
# MemoryError.
cdef int64_t record_seed(const uint8_t* data, size_t n) except -1

cdef inline size_t record_size(size_t key_len, size_t value_len, bint expires) noexcept nogil:
    return RECORD_HEADER + (RECORD_DEADLINE if expires else 0) + key_len + value_len


# A record to be written; its version is still to be set.
cdef inline Record record_of(uint8_t flags, Slice key, Slice value, uint64_t expires_at) noexcept nogil:
    cdef Record r
    r.checksum = 0
    r.version = 0
    r.flags = flags
    r.expires_at = expires_at
    r.key = key
    r.value = value
    r.size = record_size(key.len, value.len, expires_at != 0)
    return r


# Split the record at `data` into its parts, believing its lengths only as far as they fit into `available` bytes. 0, or
# -1 with r.size 0 when they do not fit, or version or flags are none that this format writes. The checksum is not looked
# at.
cdef inline int record_decode(const uint8_t* data, size_t available, Record* r) noexcept nogil:
    cdef uint32_t value_len, key_len
    cdef size_t size, start = RECORD_HEADER
    r.flags = 0
    r.version = 0
    r.expires_at = 0
    r.size = 0
    r.key.ptr = r.value.ptr = NULL
    r.key.len = r.value.len = 0
    if available < RECORD_HEADER:
        return -1
    memcpy(&r.checksum, data, 4)
    memcpy(&r.version, data + 4, 8)
    memcpy(&value_len, data + 12, 4)
    memcpy(&key_len, data + 16, 4)
    r.flags = key_len >> 24
    key_len &= 0xFFFFFF
    if key_len > MAX_KEY_SIZE or value_len > MAX_VALUE_SIZE or r.flags >= RECORD_COMMIT + RECORD_MARK:
        return -1
    if r.version == 0:          # zeros are never a record
        return -1
    size = record_size(key_len, value_len, r.flags & RECORD_EXPIRES)
    if size > available:
        return -1
    if r.flags & RECORD_EXPIRES:
        memcpy(&r.expires_at, data + RECORD_HEADER, RECORD_DEADLINE)
        start += RECORD_DEADLINE
    r.size = size
    r.key.ptr = data + start
    r.key.len = key_len
    r.value.ptr = r.key.ptr + key_len
    r.value.len = value_len
    return 0
