cdef extern from "guard.h" nogil:
    int kv_guard_install()
    int kv_guard_copy(void* dst, const void* src, size_t n)
    int kv_guard_compare(const void* mapped, size_t m, const void* key, size_t n, int* order)
    int kv_guard_key_equal(const uint8_t* record, size_t size, const void* key, size_t n)


if kv_guard_install() != 0:
    raise OSError("cannot install a handler for SIGBUS")


cdef int guard_copy(void* dst, const void* src, size_t n) noexcept nogil:
    return kv_guard_copy(dst, src, n)


cdef int guard_compare(const void* mapped, size_t m, const void* key, size_t n, int* order) noexcept nogil:
    return kv_guard_compare(mapped, m, key, n, order)


cdef int guard_key_equal(const uint8_t* record, size_t size, const void* key, size_t n) noexcept nogil:
    return kv_guard_key_equal(record, size, key, n)
