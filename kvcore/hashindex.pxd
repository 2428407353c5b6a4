"""The index: keyed 64-bit hash -> Location, 16 bytes an entry, keys not stored.

Each hash names a partition (its upper bits) and, within it, a place and a stored 32-bit hash (its lower bits):

    partition p:   [ . ][ h=2 ][ h=9 ][ h=9 ][ . ][ h=31 ] ...      capacity homes, then slack
                          ^ home of a hash h is h * capacity >> 32

Linear probing in which the entries of a partition stand in ascending order of their stored hash. So a search ends at the
first larger hash (a miss costs no more than a hit, even when the table is nine tenths full), and growing is one pass
that copies in order to any new capacity. Partitions grow one at a time, by a quarter, from 0.9 full to 0.72: at most
16 / 0.72 = 22.3 bytes a key. Two keys may share all 40 bits in use: who looks up confirms each candidate in the log.

Thread: the owner's alone. An Entry pointer lives until the next insert or remove.
The hash is SipHash-1-3 (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012), keyed by the store's secret, so
that nobody can craft keys that pile up.
"""
from libc.stdint cimport uint32_t, uint64_t

from kvcore.regions cimport Region
from kvcore.types cimport Location, uint8_t


cdef enum:
    PARTITIONS = 256


cdef struct Entry:
    uint32_t hash
    Location at                 # at.length 0: an empty place


cdef struct Partition:
    Entry* entries
    uint32_t capacity           # homes
    uint32_t places             # capacity + slack
    uint32_t count


cdef class HashIndex:
    cdef Partition partitions[PARTITIONS]
    cdef Region* regions        # memory of larger tables
    cdef uint64_t k0
    cdef uint64_t k1
    cdef readonly uint64_t count


cdef uint64_t index_hash(HashIndex index, const uint8_t* key, size_t n) noexcept nogil

# Have the place of this hash loaded into the cache.
cdef void index_prefetch(HashIndex index, uint64_t hash) noexcept nogil

# The first entry with this hash, or NULL; index_next goes on from one that was not the key.
cdef Entry* index_first(HashIndex index, uint64_t hash) noexcept nogil
cdef Entry* index_next(HashIndex index, uint64_t hash, Entry* entry) noexcept nogil

# The entry that names this place, or NULL.
cdef Entry* index_find(HashIndex index, uint64_t hash, uint32_t segment, uint32_t offset) noexcept nogil

# Add an entry; equal hashes may stand beside each other. Raises MemoryError, and has changed nothing then.
cdef int index_insert(HashIndex index, uint64_t hash, Location at) except -1

# Fill an empty partition with entries in ascending order of their hash. Raises MemoryError.
cdef int index_fill(HashIndex index, int partition, const Entry* entries, uint32_t count) except -1

# Take an entry out that index_first or index_next gave.
cdef void index_remove(HashIndex index, uint64_t hash, Entry* entry) noexcept

# Memory of the tables in bytes.
cdef uint64_t index_bytes(HashIndex index) noexcept
