"""Types and limits shared by every module of the engine and by kvnet.

Borrowing: a Slice never owns its bytes. One into an input chunk lives until the function it was passed to returns; one
handed out by the engine lives until the next call that changes the store.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef struct Slice:
    const uint8_t* ptr
    size_t len


# Where a record stands. length is that of the whole record; 0 means "no record".
cdef struct Location:
    uint32_t segment
    uint32_t offset
    uint32_t length


cdef enum:
    MAX_KEY_SIZE = 102400               # bytes
    MAX_VALUE_SIZE = 1073741824         # bytes; --max-value-size may lower it


cdef inline Slice slice_of(const void* ptr, size_t len) noexcept nogil:
    cdef Slice s
    s.ptr = <const uint8_t*>ptr
    s.len = len
    return s


# Have the line of memory at this address loaded into the cache. Nothing happens where there is none.
cdef extern from *:
    """
    #define kv_prefetch(address) __builtin_prefetch(address)
    """
    void kv_prefetch(const void* address) noexcept nogil
