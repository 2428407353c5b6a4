"""The index over the log: which entry is a key's, and what its record says.

The index knows hashes only; here a candidate is confirmed by the bytes in the log. A candidate whose record is damaged
may be the key in question (and with 40 equal hash bits it is, but for one chance in 2^40 per key): it is reported as
such, never passed over as "another key".
"""
from libc.stdint cimport uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.hashindex cimport Entry, HashIndex
from kvcore.log cimport Log
from kvcore.record cimport Record
from kvcore.types cimport Location, Slice


cdef enum:
    LOOKUP_AHEAD = 16

cdef enum Found:
    NOT_FOUND = 0
    FOUND = 1
    DAMAGED = 2


# Copy the record at `at` behind out's content (out.len does not move) and check it. FOUND, with r pointing into out, or
# DAMAGED, with r.size 0 when not even its lengths can be made out. Raises MemoryError.
cdef Found lookup_record(Log log, Location at, ByteBuf out, Record* r) except? NOT_FOUND

# The entry of `key`, for replacing or removing it: its record's key is compared, the rest not verified. `scratch` is
# used only when a candidate holds another key. FOUND or DAMAGED with *entry set, or NOT_FOUND. Raises MemoryError.
cdef Found lookup_entry(
    HashIndex index, Log log, uint64_t hash, Slice key, ByteBuf scratch, Entry** entry) except? NOT_FOUND

# Read `key`, verified: r.value stands behind out's content, alone or with what precedes it in the record; r.key is not to be
# used. *at says where the record stands in the log. FOUND, NOT_FOUND, or DAMAGED. Raises MemoryError.
cdef Found lookup_read(
    HashIndex index, Log log, uint64_t hash, Slice key, ByteBuf out, Record* r, Location* at) except? NOT_FOUND

# These n keys come next: have their entries and records loaded into the cache, LOOKUP_AHEAD at once.
cdef void lookup_expect(HashIndex index, Log log, const Slice* keys, size_t n) noexcept

# Raises CorruptionError that names the place.
cdef int lookup_damaged(Log log, Location at) except -1
