"""Latencies in nanoseconds, in buckets that are at most 1/64 of their value wide.

    value          0 .. 127   128 .. 255   256 .. 511   512 .. 1023  ...
    bucket width      1           2            4            8        ...      64 buckets for each power of two

(Log-linear, as HdrHistogram has it.) Thread: one at a time.
"""
from libc.stdint cimport uint64_t


cdef extern from *:
    """
    /* The place of the highest bit that is set; value is not 0. */
    static inline int kv_highest_bit(unsigned long long value) { return 63 - __builtin_clzll(value); }
    """
    int kv_highest_bit(unsigned long long value) noexcept nogil


cdef enum:
    SUB_BITS = 6
    SUB_BUCKETS = 64
    BUCKETS = 36 * SUB_BUCKETS + SUB_BUCKETS
    LONGEST_BITS = 42                   # what takes 2**42 ns, 73 minutes, or longer is counted as a nanosecond less


cdef struct Counts:
    uint64_t[BUCKETS] buckets
    uint64_t count
    uint64_t sum
    uint64_t longest


cdef class Histogram:
    cdef Counts counts


cdef inline void counts_add(Counts* c, uint64_t ns) noexcept nogil:
    cdef int shift
    cdef uint64_t value = (<uint64_t>1 << LONGEST_BITS) - 1
    if ns < value:
        value = ns
    shift = kv_highest_bit(value | SUB_BUCKETS) - SUB_BITS
    c.buckets[(shift << SUB_BITS) + <int>(value >> shift)] += 1
    c.count += 1
    c.sum += ns
    if ns > c.longest:
        c.longest = ns
