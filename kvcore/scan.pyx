from libc.stdlib cimport qsort
from libc.string cimport memcmp

from kvcore.bytebuf cimport bytebuf_append, bytebuf_clear
from kvcore.hashindex cimport PARTITIONS, Partition, index_hash
from kvcore.log cimport log_now
from kvcore.lookup cimport DAMAGED, FOUND, lookup_damaged, lookup_read, lookup_record
from kvcore.types cimport Location, uint8_t


cdef class Cursor:
    """A walk over keys in byte order. Made by Store.keys and Store.items."""


cdef int by_key(const void* a, const void* b) noexcept nogil:
    cdef const Slice* x = <const Slice*>a
    cdef const Slice* y = <const Slice*>b
    cdef int order = memcmp(x.ptr, y.ptr, min(x.len, y.len))
    return order if order else (x.len > y.len) - (x.len < y.len)


cdef inline bint begins_with(Slice key, Slice prefix) noexcept nogil:
    return prefix.len == 0 or (key.len >= prefix.len and memcmp(key.ptr, prefix.ptr, prefix.len) == 0)


cdef Cursor scan_prefix(HashIndex index, Log log, Slice prefix):
    cdef Cursor c = Cursor()
    cdef ByteBuf scratch = ByteBuf()
    cdef Partition* part
    cdef Location at
    cdef Record r
    cdef Slice name
    cdef Slice* names
    cdef size_t i, count
    cdef uint8_t* key
    cdef int p
    c.index = index
    c.log = log
    c.arena = ByteBuf()
    c.names = ByteBuf()
    for p in range(PARTITIONS):
        part = &index.partitions[p]
        for i in range(part.places):
            at = part.entries[i].at
            if at.length == 0:
                continue
            if lookup_record(log, at, scratch, &r) == DAMAGED:
                # Named, if its key as it stands belongs here or cannot be made out, when everything else has come.
                if r.size == 0 or begins_with(r.key, prefix):
                    c.damaged = at
                continue
            if not begins_with(r.key, prefix):
                continue
            bytebuf_append(c.arena, r.key.ptr, r.key.len)
            name.ptr = NULL             # the arena moves while it grows
            name.len = r.key.len
            bytebuf_append(c.names, &name, sizeof(Slice))
    names = <Slice*>c.names.data
    count = c.names.len // sizeof(Slice)
    key = c.arena.data
    for i in range(count):
        names[i].ptr = key
        key += names[i].len
    if count:
        with nogil:
            qsort(names, count, sizeof(Slice), by_key)
    return c


cdef int scan_next(Cursor c, ByteBuf out, Record* r) except -1:
    cdef Slice* names = <Slice*>c.names.data
    cdef Slice key
    cdef Location at
    while c.next < c.names.len // sizeof(Slice):
        key = names[c.next]
        c.next += 1
        found = lookup_read(c.index, c.log, index_hash(c.index, key.ptr, key.len), key, out, r, &at)
        if found == FOUND and not (r.expires_at and r.expires_at <= log_now(c.log)):
            return 1
        if found == DAMAGED:
            lookup_damaged(c.log, at)
    bytebuf_clear(c.names, 0)
    bytebuf_clear(c.arena, 0)
    if c.damaged.length:
        at = c.damaged
        c.damaged.length = 0
        lookup_damaged(c.log, at)
    return 0
