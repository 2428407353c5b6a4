from cpython.buffer cimport PyBuffer_FillInfo

from crc32c import crc32c


cdef extern from "crc32c.h" nogil:
    int kv_crc32c_here()
    uint32_t kv_crc32c(const uint8_t* data, size_t n, uint32_t seed)
    enum: KV_CRC32C_SHORT


cdef class Window:
    """A reusable buffer object over borrowed bytes, so that crc32c() is called without making one each time."""

    cdef const uint8_t* data
    cdef Py_ssize_t len

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, <void*>self.data, self.len, 1, flags)


# Shared by all threads: it is filled and exported without giving up the GIL in between.
cdef Window window = Window()
cdef object checksum_of = crc32c
cdef size_t short_size = KV_CRC32C_SHORT if kv_crc32c_here() else 0


cdef int64_t crc32c_of(const void* data, size_t n, uint32_t seed) except -1 nogil:
    if n <= short_size:
        return kv_crc32c(<const uint8_t*>data, n, seed)
    with gil:
        window.data = <const uint8_t*>data
        window.len = n
        return checksum_of(window, seed)


cdef int record_encode(uint8_t* dst, const Record* r, uint32_t seed) except -1 nogil:
    cdef uint8_t flags = r.flags | RECORD_EXPIRES if r.expires_at else r.flags & ~RECORD_EXPIRES
    cdef uint32_t value_len = <uint32_t>r.value.len
    cdef uint32_t key_len = <uint32_t>r.key.len | <uint32_t>flags << 24
    cdef uint8_t* tail = dst + RECORD_HEADER
    memcpy(dst + 4, &r.version, 8)
    memcpy(dst + 12, &value_len, 4)
    memcpy(dst + 16, &key_len, 4)
    if r.expires_at:
        memcpy(tail, &r.expires_at, RECORD_DEADLINE)
        tail += RECORD_DEADLINE
    if r.key.len:
        memcpy(tail, r.key.ptr, r.key.len)
    if r.value.len:
        memcpy(tail + r.key.len, r.value.ptr, r.value.len)
    tail += r.key.len + r.value.len
    cdef uint32_t checksum = <uint32_t>crc32c_of(dst + 4, tail - dst - 4, seed)
    memcpy(dst, &checksum, 4)
    return 0


cdef int record_verify(const uint8_t* data, const Record* r, uint32_t seed) except -1 nogil:
    return r.checksum == <uint32_t>crc32c_of(data + 4, r.size - 4, seed)


cdef int64_t record_wrong_bit(const uint8_t* data, size_t n, uint32_t seed) except? -2:
    # The polynomial, reflected, in a variable: as a literal it is too large for Cython to take it for a C integer.
    cdef uint32_t polynomial = 0x82F63B78
    cdef uint32_t stored, contribution = polynomial     # of the last bit
    cdef uint64_t back
    memcpy(&stored, data, 4)
    cdef uint32_t syndrome = stored ^ <uint32_t>crc32c_of(data + 4, n - 4, seed)
    cdef int bit
    for bit in range(32):
        if syndrome == <uint32_t>1 << bit:
            return bit                                  # the checksum itself was hit
    # A checksum is linear: what a bit contributes depends on how many bits follow it, by one shift each.
    for back in range(8 * <uint64_t>(n - 4)):
        if contribution == syndrome:
            return <int64_t>(8 * <uint64_t>n - 8 * (back // 8 + 1) + 7 - back % 8)
        contribution = contribution >> 1 ^ (polynomial if contribution & 1 else 0)
    return -1


cdef int64_t record_seed(const uint8_t* data, size_t n) except -1:
    cdef uint32_t seed
    cdef size_t _bit
    memcpy(&seed, data, 4)
    # By linearity: what the seed contributed, moved on by the bytes behind it. That is undone a bit at a time.
    seed ^= <uint32_t>crc32c_of(data + 4, n - 4, 0)
    for _bit in range(8 * (n - 4)):
        seed = (seed ^ 0x82F63B78) << 1 | 1 if seed >> 31 else seed << 1
    return seed
