from libc.string cimport memchr, memcmp

from kvcore.types cimport MAX_KEY_SIZE, slice_of


cdef enum:
    BLANKS = 1024               # room in the limits for more than one blank between word and key

# A command that does not begin with "write" is a word, blanks and a key.
cdef size_t SHORT_LIMIT = 8 + BLANKS + MAX_KEY_SIZE

# [A-z] as the challenge wrote it: ASCII 65 to 122, six punctuation characters included.
cdef bint[256] key_byte = [65 <= c <= 122 or 48 <= c <= 57 or chr(c) in ".-:" for c in range(256)]


cdef size_t text_limit(size_t value_limit) noexcept:
    return SHORT_LIMIT + value_limit


cdef inline size_t longest(Framer* f, const uint8_t* data, size_t n) noexcept nogil:
    return f.limit if n >= 6 and memcmp(data, b"write ", 6) == 0 else SHORT_LIMIT


cdef Frame text_frame(Framer* f, const uint8_t* data, size_t n, size_t* used, Slice* line) noexcept nogil:
    cdef const uint8_t* end = NULL
    if f.after_return and n:
        f.after_return = False
        if data[0] == 10:
            used[0] = 1
            return FRAME_SKIPPED
    if n > f.scanned:
        end = <const uint8_t*>memchr(data + f.scanned, 13, n - f.scanned)
    used[0] = 0
    if end == NULL:
        if f.dropping or n > longest(f, data, n):
            used[0] = n
            f.scanned = 0
            if f.dropping:
                return FRAME_MORE
            f.dropping = True
            return FRAME_TOO_LONG
        f.scanned = n
        return FRAME_MORE
    used[0] = end + 1 - data
    f.scanned = 0
    f.after_return = True
    if f.dropping:
        # Its error was answered when it passed the limit.
        f.dropping = False
        return FRAME_SKIPPED
    line[0] = slice_of(data, end - data)
    return FRAME_TOO_LONG if line.len > longest(f, data, n) else FRAME_LINE


cdef size_t text_word(Slice line) noexcept nogil:
    cdef size_t n = 0
    while n < line.len and line.ptr[n] != 32:
        n += 1
    return n


cdef int text_arguments(Slice line, size_t word, Shape shape, Arguments* a) noexcept nogil:
    cdef size_t start = word, end
    if shape == SHAPE_NONE:
        return 0 if line.len == word else -1
    while start < line.len and line.ptr[start] == 32:
        start += 1
    end = start
    while end < line.len and key_byte[line.ptr[end]]:
        end += 1
    if end == start or end - start > MAX_KEY_SIZE:
        return -1
    a.key = slice_of(line.ptr + start, end - start)
    if shape == SHAPE_KEY:
        return 0 if end == line.len else -1
    if end == line.len or line.ptr[end] != 124:
        return -1
    a.value = slice_of(line.ptr + end + 1, line.len - end - 1)
    return 0


cdef Slice text_key(Slice line) noexcept nogil:
    cdef size_t start = text_word(line), end
    while start < line.len and line.ptr[start] == 32:
        start += 1
    end = start
    while end < line.len and key_byte[line.ptr[end]]:
        end += 1
    return slice_of(line.ptr + start, end - start)
