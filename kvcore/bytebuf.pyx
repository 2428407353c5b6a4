from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport SIZE_MAX
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from kvcore.types cimport uint8_t


cdef enum:
    SMALLEST = 256


cdef class ByteBuf:
    """A growable byte buffer; memoryview(buf) shows its content, read-only and without a copy.

    Raises BufferError when it has to grow while a memoryview of it is alive.
    """

    def __dealloc__(self):
        free(self.data)

    def __len__(self):
        return self.len

    def __bytes__(self):
        return self.data[:self.len]

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.len, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1


cdef int bytebuf_grow(ByteBuf b, size_t extra) except -1:
    if extra > SIZE_MAX // 2 - b.len:
        raise OverflowError("a byte buffer cannot hold that much")
    # Half as much again: amortised O(1), and room that was never touched costs no memory.
    cdef size_t room = max(b.len + extra, b.cap + b.cap // 2, <size_t>SMALLEST)
    _resize(b, room)
    return 0


cdef int _resize(ByteBuf b, size_t room) except -1:
    if b.exports:
        raise BufferError("a byte buffer cannot change its size while it is being read")
    cdef uint8_t* data = <uint8_t*>realloc(b.data, room)
    if data == NULL:
        raise MemoryError(f"no memory for a buffer of {room} bytes")
    b.data = data
    b.cap = room
    return 0


cdef void bytebuf_discard(ByteBuf b, size_t n) noexcept:
    if n >= b.len:
        b.len = 0
        return
    if n:
        memmove(b.data, b.data + n, b.len - n)
        b.len -= n


cdef void bytebuf_clear(ByteBuf b, size_t keep) noexcept:
    b.len = 0
    if b.cap > keep and not b.exports:
        free(b.data)
        b.data = NULL
        b.cap = 0
