from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcmp

from kvcore.bytebuf cimport ByteBuf, bytebuf_append, bytebuf_clear, bytebuf_truncate
from kvcore.clock cimport clock
from kvcore.store cimport (
    store_delete, store_get, store_next, store_prepare, store_put, store_scan, store_warm, store_warm_next, store_warm_scan)
from kvcore.types cimport slice_of
from kvnet.context cimport ESCABELO, LF
from kvnet.metrics cimport OUTCOME_MISS, OUTCOME_OK
from kvnet.textwire cimport SHAPE_KEY, SHAPE_KEY_VALUE, SHAPE_NONE

from kvcore.errors import CorruptionError
from kvnet.errors import text_error


cdef enum:
    ITEM_KEPT = 1 << 16             # bytes of room the scratch for list items keeps
    LOOK_EVERY = 16                 # items between looks at the clock

cdef ByteBuf item = ByteBuf()       # scratch for one item of a list

cdef str NO_RETURN = "it holds a carriage return, which this protocol cannot carry"


cdef inline int reply(Context c, const char* text, size_t n) except -1:
    return bytebuf_append(c.out, text, n)


cdef int text_fail(Context c, object reason) except -1:
    cdef bytes text = text_error(reason, c.dialect == ESCABELO)
    return bytebuf_append(c.out, <const char*>text, len(text))


cdef Outcome run_read(Context c, const Arguments* a) except? OUTCOME_ERROR:
    cdef size_t start = c.out.len
    if store_get(c.store, a.key, c.out) == 0:
        text_fail(c, "no such key")
        return OUTCOME_MISS
    if c.out.len > start and memchr(c.out.data + start, 13, c.out.len - start) != NULL:
        bytebuf_truncate(c.out, start)
        text_fail(c, NO_RETURN)
        return OUTCOME_ERROR
    reply(c, b"\r", 1)
    return OUTCOME_OK


cdef Outcome run_write(Context c, const Arguments* a) except? OUTCOME_ERROR:
    if c.refusing is not None:
        text_fail(c, c.refusing)
        return OUTCOME_ERROR
    store_put(c.store, a.key, a.value, 0)
    reply(c, b"success\r", 8)
    return OUTCOME_OK


cdef Outcome run_delete(Context c, const Arguments* a) except? OUTCOME_ERROR:
    if c.refusing is not None:
        text_fail(c, c.refusing)
        return OUTCOME_ERROR
    if store_delete(c.store, a.key) == 0:
        text_fail(c, "no such key")
        return OUTCOME_MISS
    reply(c, b"success\r", 8)
    return OUTCOME_OK


cdef Outcome run_status(Context c, const Arguments* a) except? OUTCOME_ERROR:
    reply(c, b"well going our operation", 24)
    if c.dialect == ESCABELO:
        stats = c.store.stats()
        counted = " ".join(f"{name}={c.metrics.total('text', name)}" for name in ("read", "write", "delete"))
        counters = f"\nkeys={stats['keys']} {counted}".encode()
        bytebuf_append(c.out, <const char*>counters, len(counters))
    reply(c, b"\r", 1)
    return OUTCOME_OK


cdef Outcome run_keys(Context c, const Arguments* a) except? OUTCOME_ERROR:
    return begin_list(c, slice_of(NULL, 0), False)


cdef Outcome run_reads(Context c, const Arguments* a) except? OUTCOME_ERROR:
    return begin_list(c, a.key, True)


cdef Outcome begin_list(Context c, Slice prefix, bint values) except? OUTCOME_ERROR:
    c.cursor = store_scan(c.store, prefix)
    c.list_values = values
    c.list_begun = False
    return OUTCOME_OK


cdef int text_list_more(Context c, size_t room, double until) except -1:
    cdef int more
    cdef uint32_t items = 0
    if not store_prepare(c.cursor):
        return 0
    while c.out.len < room:
        items += 1
        if items % LOOK_EVERY == 0 and clock() > until:
            return 0
        if c.doubt:
            c.job = store_warm_next(c.cursor, c.list_values)
            if c.job is not None:
                return 0
        bytebuf_clear(item, ITEM_KEPT)
        try:
            more = store_next(c.store, c.cursor, None if c.list_values else item, item if c.list_values else None)
        except CorruptionError as error:
            join(c)
            text_fail(c, error)
            c.out.len -= 1              # its "\r": what ends an item is the joiner
            continue
        if more == 0:
            c.cursor = None
            reply(c, b"\r", 1)
            return 1
        join(c)
        if item.len and memchr(item.data, 13, item.len) != NULL:
            text_fail(c, NO_RETURN)
            c.out.len -= 1
        else:
            bytebuf_append(c.out, item.data, item.len)
    return 0


cdef int join(Context c) except -1:
    if c.list_begun:
        reply(c, b"\n" if c.dialect == LF else b"\r", 1)
    c.list_begun = True
    return 0


cdef int warm_value(Context c, const Arguments* a, bint doubt) except -1:
    if doubt:
        c.job = store_warm(c.store, a.key, True, c.job)
    return 0


cdef int warm_key(Context c, const Arguments* a, bint doubt) except -1:
    if doubt:
        c.job = store_warm(c.store, a.key, False, c.job)
    return 0


cdef int warm_keys(Context c, const Arguments* a, bint doubt) except -1:
    c.job = store_warm_scan(c.store, slice_of(NULL, 0), False, doubt)
    return 0


cdef int warm_reads(Context c, const Arguments* a, bint doubt) except -1:
    c.job = store_warm_scan(c.store, a.key, True, doubt)
    return 0


cdef int text_find(Slice word) noexcept nogil:
    cdef int row
    for row in range(TEXT_COMMANDS):
        if word.len == text_commands[row].name_len and memcmp(word.ptr, text_commands[row].name, word.len) == 0:
            return row
    return -1


text_commands = [
    TextCommand(b"read", 4, SHAPE_KEY, 0, run_read, warm_value),
    TextCommand(b"write", 5, SHAPE_KEY_VALUE, FLAG_WRITES, run_write, warm_key),
    TextCommand(b"delete", 6, SHAPE_KEY, FLAG_WRITES, run_delete, warm_key),
    TextCommand(b"status", 6, SHAPE_NONE, 0, run_status, NULL),
    TextCommand(b"keys", 4, SHAPE_NONE, FLAG_LISTS, run_keys, warm_keys),
    TextCommand(b"reads", 5, SHAPE_KEY, FLAG_LISTS, run_reads, warm_reads),
]

# (name, what follows it) of every command, for docs and tests.
COMMANDS = tuple(
    (text_commands[row].name.decode(), ("", "key", "key|value")[text_commands[row].shape]) for row in range(TEXT_COMMANDS))
