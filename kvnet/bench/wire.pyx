from libc.string cimport memchr, memcmp, memcpy

from libc.stdint cimport int64_t

from kvcore.types cimport MAX_VALUE_SIZE, slice_of

from kvnet.bench.workload cimport key_put, key_size, value_of

PROTOCOLS = ("text", "resp")

cdef Slice SUCCESS = slice_of(<const char*>b"success", 7)


cdef inline uint8_t* put(uint8_t* out, const void* data, size_t n) noexcept nogil:
    memcpy(out, data, n)
    return out + n


cdef uint8_t* put_length(uint8_t* out, uint64_t n) noexcept nogil:
    """$<n>\\r\\n"""
    cdef uint8_t[20] digits
    cdef int i = 20
    while True:
        i -= 1
        digits[i] = <uint8_t>(48 + n % 10)
        n //= 10
        if n == 0:
            break
    out[0] = 36
    out = put(out + 1, digits + i, 20 - i)
    return put(out, b"\r\n", 2)


cdef uint8_t* command_put(
        Protocol protocol, Operation operation, Workload w, uint64_t number, uint8_t* out) noexcept nogil:
    cdef Slice value
    if protocol == TEXT:
        out = put(out, b"write ", 6) if operation == WRITE else put(out, b"read ", 5)
        out = key_put(w, number, out)
        if operation == WRITE:
            value = value_of(w, number)
            out[0] = 124
            out = put(out + 1, value.ptr, value.len)
        out[0] = 13
        return out + 1
    out = put(out, b"*3\r\n$3\r\nSET\r\n", 13) if operation == WRITE else put(out, b"*2\r\n$3\r\nGET\r\n", 13)
    out = key_put(w, number, put_length(out, key_size(w, number)))
    if operation == WRITE:
        value = value_of(w, number)
        out = put_length(put(out, b"\r\n", 2), value.len)
        out = put(out, value.ptr, value.len)
    return put(out, b"\r\n", 2)


cdef void keep(Reply* r, const void* data, uint64_t n) noexcept nogil:
    cdef size_t room = HEAD - r.kept
    if n > room:
        n = room
    memcpy(r.head + r.kept, data, n)
    r.kept += n


cdef void compare(Reply* r, Slice expected, const uint8_t* data, size_t n) noexcept nogil:
    """The next n bytes of what should be `expected` have come."""
    if not r.differs and (r.seen + n > expected.len or memcmp(data, expected.ptr + r.seen, n) != 0):
        r.differs = True
        keep(r, expected.ptr, r.seen)
    if r.differs:
        keep(r, data, n)
    r.seen += n


cdef bint begins(const Reply* r, const char* text, size_t n) noexcept nogil:
    return r.kept >= n and memcmp(r.head, text, n) == 0


cdef Outcome text_take(
        Operation operation, Slice expected, Reply* r, const uint8_t* data, size_t n, size_t* used) noexcept nogil:
    cdef size_t known
    cdef const uint8_t* end = NULL
    if operation == WRITE:
        expected = SUCCESS
    # Values hold no "\r": where one is due, nothing but that byte needs to be looked for.
    known = expected.len - r.seen
    if not r.differs and n > known and data[known] == 13 and memcmp(data, expected.ptr + r.seen, known) == 0:
        used[0] = known + 1
        return GOOD
    end = <const uint8_t*>memchr(data, 13, n)
    used[0] = n if end == NULL else end + 1 - data
    compare(r, expected, data, n if end == NULL else end - data)
    if end == NULL:
        return MORE
    if not r.differs and r.seen == expected.len:
        return GOOD
    if not r.differs:
        keep(r, expected.ptr, r.seen)       # it ends too early
    if operation == WRITE:
        return REFUSED if begins(r, b"error", 5) else FOREIGN
    return MISS if begins(r, b"error", 5) else WRONG


cdef int64_t declared(const Reply* r) noexcept nogil:
    """The number behind the "$" in head; -1 for the null, -2 when it is none."""
    cdef int64_t n = 0
    cdef size_t i
    if r.kept == 3 and r.head[1] == 45 and r.head[2] == 49:
        return -1
    if r.kept < 2 or r.kept > 11:
        return -2
    for i in range(1, r.kept):
        if not 48 <= r.head[i] <= 57:
            return -2
        n = n * 10 + r.head[i] - 48
    return n if n <= MAX_VALUE_SIZE else -2


cdef Outcome resp_line(Operation operation, Slice expected, Reply* r) noexcept nogil:
    """What the line in head says. MORE: a value follows."""
    cdef int64_t length
    if r.head[0] == 45:
        return REFUSED
    if operation == WRITE:
        return GOOD if r.kept == 3 and begins(r, b"+OK", 3) else FOREIGN
    length = declared(r) if r.head[0] == 36 else -2
    if length == -1:
        return MISS
    if length < 0:
        return FOREIGN
    r.stage = VALUE
    r.length = length
    r.kept = 0
    r.differs = r.length != expected.len
    return MORE


cdef Outcome resp_take(
        Operation operation, Slice expected, Reply* r, const uint8_t* data, size_t n, size_t* used) noexcept nogil:
    cdef Outcome outcome
    cdef size_t i = 0, part
    while i < n:
        if r.stage == LINE:
            if r.kept == 0 and data[i] != 45 and data[i] != (43 if operation == WRITE else 36):
                keep(r, data + i, n - i)
                return FOREIGN
            i += 1
            if data[i - 1] != 10:
                keep(r, data + i - 1, 1)
                continue
            if r.head[r.kept - 1] == 13:
                r.kept -= 1
            outcome = resp_line(operation, expected, r)
            if outcome != MORE:
                used[0] = i
                return outcome
        if r.stage == VALUE:
            part = n - i if n - i < r.length - r.seen else r.length - r.seen
            compare(r, expected, data + i, part)
            i += part
            if r.seen == r.length:
                r.stage = RETURN
        elif data[i] != (13 if r.stage == RETURN else 10):
            r.kept = 0
            keep(r, data + i, n - i)
            return FOREIGN
        elif r.stage == RETURN:
            r.stage = FEED
            i += 1
        else:
            used[0] = i + 1
            return WRONG if r.differs else GOOD
    used[0] = n
    return MORE


cdef Outcome reply_take(
        Protocol protocol, Operation operation, Slice expected, Reply* r, const uint8_t* data, size_t n, size_t* used
) noexcept nogil:
    used[0] = n
    if protocol == TEXT:
        return text_take(operation, expected, r, data, n, used)
    return resp_take(operation, expected, r, data, n, used)
