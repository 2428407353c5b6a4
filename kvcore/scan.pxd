"""Prefix cursor: keys in byte order, with their values on request.

The names are gathered and sorted when the cursor is made; each key is looked up again when its turn comes. So a key that
exists throughout comes exactly once, one deleted meanwhile does not come, and a value is the one of that moment.
"""
from libc.stdint cimport uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log
from kvcore.record cimport Record
from kvcore.types cimport Location, Slice


cdef class Cursor:
    cdef Log log
    cdef HashIndex index
    cdef ByteBuf arena              # the keys, one behind the other
    cdef ByteBuf names              # of Slice into the arena, sorted
    cdef size_t next
    cdef Location damaged           # a record met whose key cannot be trusted; length 0: none


# All keys that begin with `prefix`. Raises MemoryError.
cdef Cursor scan_prefix(HashIndex index, Log log, Slice prefix)

# The next key that is there: 1, and r points into `out`, as after lookup_record; 0 at the end.
# Raises CorruptionError when a record is damaged, at its place or, when its key is not known, at the end (the next call goes
# on behind it); MemoryError.
cdef int scan_next(Cursor c, ByteBuf out, Record* r) except -1
