"""What is asked for: keys and values by number, and the order in which the numbers come.

Keys and values are functions of their number, so every write of a key writes the same bytes, and a read can be verified
without remembering anything. Keys are the number in digits, then letters; no key is the beginning of another. Values are
slices of one block of random bytes: cheap to make, and no compression makes them smaller. They hold no "\\r", "\\n", "|"
nor zero byte, so that every peer's text protocol carries them.

Which numbers come often is decided by rank, 0 the most popular; a fixed permutation spreads the ranks over the numbers, so
that popular keys are not neighbours.

Thread: a Workload never changes; any number may use it. Each has a random state of its own.
"""
from kvcore.types cimport Slice, uint8_t, uint64_t


cdef enum Distribution:
    UNIFORM = 0
    EIGHTY_TWENTY = 1           # 80 % of the accesses to 20 % of the keys
    ZIPF = 2

cdef enum:
    MAX_SPANS = 4


cdef struct SizeSpan:
    uint64_t until              # of 100: those whose hash is below, and not below that of the span before
    uint64_t shortest
    uint64_t choices            # sizes in the span


cdef class Workload:
    cdef readonly uint64_t keys
    cdef readonly uint64_t longest_key
    cdef readonly uint64_t longest_value
    cdef Distribution distribution
    cdef SizeSpan[MAX_SPANS] key_spans
    cdef SizeSpan value_span
    cdef int digits                     # of the number in a key
    cdef size_t prefix                  # bytes of "key:" before them: 4 or 0
    cdef uint64_t stride                # of the permutation: no divisor but 1 in common with keys
    cdef double zeta, zeta2, alpha, eta
    cdef bytes letters, block
    cdef const uint8_t* letters_at
    cdef const uint8_t* block_at


# The number with this rank. Both are below w.keys.
cdef uint64_t number_of(Workload w, uint64_t rank) noexcept nogil

# A random number below 2**64, and the next state.
cdef uint64_t random_next(uint64_t* state) noexcept nogil

# The number of the next key, by the distribution.
cdef uint64_t pick(Workload w, uint64_t* state) noexcept nogil

cdef size_t key_size(Workload w, uint64_t number) noexcept nogil

# Write the key of a number, key_size() bytes; return the end.
cdef uint8_t* key_put(Workload w, uint64_t number, uint8_t* out) noexcept nogil

# The value of a number. It lives as long as w.
cdef Slice value_of(Workload w, uint64_t number) noexcept nogil
