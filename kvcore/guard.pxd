"""The one state of guard.h in the process: every access to mapped file bytes goes through these functions.

Thread: any. None raises.
"""
from kvcore.types cimport uint8_t


# Copy n bytes, of which one side is mapped. 0, or -1 when a page cannot be reached.
cdef int guard_copy(void* dst, const void* src, size_t n) noexcept nogil

# Compare a mapped key of m bytes with another of n bytes, as memcmp does, shorter first when one begins the other: *order
# is set. 0, or -1 when a page cannot be read.
cdef int guard_compare(const void* mapped, size_t m, const void* key, size_t n, int* order) noexcept nogil

# Does the mapped record of `size` bytes hold this key? 1, 0, or -1 when a page cannot be read.
cdef int guard_key_equal(const uint8_t* record, size_t size, const void* key, size_t n) noexcept nogil
