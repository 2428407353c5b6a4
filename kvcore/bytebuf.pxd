"""ByteBuf: a growable byte buffer, exported to Python as a read-only memoryview.

    data                  len          cap
     |<----- content ----->|<-- room -->|

Ownership: the ByteBuf owns `data`. A pointer from bytebuf_reserve, or any Slice into the buffer, lives until the next
call that may grow, shrink or clear it. While a memoryview is exported, growing raises BufferError.
Thread: any one thread at a time.
"""
from kvcore.types cimport uint8_t


cdef class ByteBuf:
    cdef uint8_t* data
    cdef size_t len
    cdef size_t cap
    cdef Py_ssize_t exports


# Grow so that `extra` more bytes fit. Raises MemoryError, BufferError, OverflowError.
cdef int bytebuf_grow(ByteBuf b, size_t extra) except -1

# Drop the first n bytes; the rest moves to the front.
cdef void bytebuf_discard(ByteBuf b, size_t n) noexcept

# Empty the buffer; give its memory back when it holds more than `keep` bytes of room.
cdef void bytebuf_clear(ByteBuf b, size_t keep) noexcept


# Room for `extra` bytes behind the content; the caller fills it and adds to b.len.
cdef inline uint8_t* bytebuf_reserve(ByteBuf b, size_t extra) except NULL:
    if b.cap - b.len < extra or b.data == NULL:
        bytebuf_grow(b, extra)
    return b.data + b.len


cdef inline int bytebuf_append(ByteBuf b, const void* src, size_t n) except -1:
    cdef uint8_t* tail = bytebuf_reserve(b, n)
    if n:
        memcpy(tail, src, n)
        b.len += n
    return 0


cdef inline void bytebuf_truncate(ByteBuf b, size_t n) noexcept:
    if n < b.len:
        b.len = n


# Exchange content and memory. Neither may be exported.
cdef inline void bytebuf_swap(ByteBuf a, ByteBuf b) noexcept:
    a.data, b.data = b.data, a.data
    a.len, b.len = b.len, a.len
    a.cap, b.cap = b.cap, a.cap


cdef extern from "<string.h>" nogil:
    void* memcpy(void* dst, const void* src, size_t n)
