"""Cursor over the keys of a range, in byte order: a merge of the segments' orders, filtered by the index.

    orders:   seg 1  [a c f ...]        the smallest name     the index says     emitted once,
              seg 2  [b c ...  ]   -->  of all, each one  --> where its record -->  with the record
              active [c d] [e]          once (c, not 3 x c)    is now, if any        that is current

An order only names candidates. A cursor keeps the orders, and so the segments, that it began with. So every key that
exists throughout the scan comes exactly once, in order, whatever is written, moved or deleted meanwhile.

A name is believed when its hash leads to an index entry that points at the very record it was read from (40 keyed bits),
or to a record with that key. The checksum is verified when the value is read as well.
"""
from libc.stdint cimport uint32_t, uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log
from kvcore.order cimport Order
from kvcore.record cimport Record
from kvcore.segment cimport Segment
from kvcore.types cimport Location, Slice


cdef enum:
    BLOCK = 32                  # names read ahead from an order


cdef struct Name:
    uint64_t hash
    uint64_t expires_at
    uint32_t offset             # of the record
    uint32_t length
    uint32_t key                # where it begins in the arena
    uint32_t key_len


cdef class Source:
    cdef Segment segment
    cdef Order order
    cdef size_t next            # place in the order of the first name not read yet
    cdef size_t end
    cdef size_t warm            # up to where in the order the records were brought into memory: warm.pxd
    cdef Name block[BLOCK]
    cdef int count              # names in block, and the current one
    cdef int at
    cdef ByteBuf arena


cdef class Cursor:
    cdef Log log
    cdef HashIndex index
    cdef list waiting           # of (Segment, orders, whether to doubt them), not searched yet; None: all are
    cdef bytes lo               # the range, until all are
    cdef bytes hi               # None: without an end
    cdef list heap              # of Source, the smallest current name first, when none waits
    cdef ByteBuf last           # the name handled last
    cdef bint begun
    cdef dict damaged           # records met whose key cannot be trusted: (slot, offset) to bytes


# The first bytes above all that begin with `prefix`; None: there are none.
cdef bytes prefix_end(bytes prefix)

# A cursor over keys k with lo <= k, and k < hi unless hi.ptr is NULL. The log's buffer must be empty. Raises StorageError,
# MemoryError.
cdef Cursor scan_range(HashIndex index, Log log, Slice lo, Slice hi)

# The same over all keys that begin with `prefix`.
cdef Cursor scan_prefix(HashIndex index, Log log, Slice prefix)

# Search the next few orders for their places: a part of a millisecond. Whether all have been, so that scan_next finds
# keys at once. Raises MemoryError.
cdef bint scan_prepare(Cursor c) except -1

# The next key: 1, and r.key holds it until the next call; with `values` all of r, pointing into `out` as after
# lookup_record. 0 at the end. Raises CorruptionError when a record is damaged, at its place or, when its key is not known,
# at the end (the next call goes on behind it); MemoryError.
cdef int scan_next(Cursor c, bint values, ByteBuf out, Record* r) except -1
