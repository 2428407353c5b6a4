"""C functions of the engine, within reach of the tests. Built in place only, never shipped."""
from kvcore.bytebuf cimport ByteBuf, bytebuf_append, bytebuf_clear, bytebuf_discard
from kvcore.files cimport Files
from kvcore.hashindex cimport Entry, HashIndex, index_bytes, index_first, index_hash, index_insert, index_next, index_remove
from kvcore.types cimport Location, uint8_t
from libc.stdint cimport int64_t, uint32_t, uint64_t


def append(ByteBuf b not None, bytes data not None):
    bytebuf_append(b, <const char*>data, len(data))


def discard(ByteBuf b not None, size_t n):
    bytebuf_discard(b, n)


def clear(ByteBuf b not None, size_t keep):
    bytebuf_clear(b, keep)


def room(ByteBuf b not None):
    return b.cap


def key_hash(HashIndex index not None, bytes key not None):
    return index_hash(index, <const uint8_t*><const char*>key, len(key))


def insert(HashIndex index not None, uint64_t hash, uint32_t tag):
    """An entry that is told from others by `tag`."""
    index_insert(index, hash, Location(tag, tag, 1))


def find(HashIndex index not None, uint64_t hash):
    """The tags of all entries with this hash."""
    cdef Entry* entry = index_first(index, hash)
    tags = []
    while entry != NULL:
        tags.append(entry.at.segment)
        entry = index_next(index, hash, entry)
    return tags


def remove(HashIndex index not None, uint64_t hash, uint32_t tag):
    """Take the entry with this hash and tag out; False when there is none."""
    cdef Entry* entry = index_first(index, hash)
    while entry != NULL:
        if entry.at.segment == tag:
            index_remove(index, hash, entry)
            return True
        entry = index_next(index, hash, entry)
    return False


def table_bytes(HashIndex index not None):
    return index_bytes(index)


cdef int64_t hand_clock(void* ctx) noexcept nogil:
    return (<int64_t*>ctx)[0]


cdef class HandFiles(Files):
    """The POSIX file table with a clock that stands at `now` (unix milliseconds) until the test sets it."""

    cdef public int64_t now

    def __cinit__(self):
        self.ctx = &self.now
        self.call.clock = hand_clock
