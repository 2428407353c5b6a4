"""Who waits for a sync: each with the mark up to which it covers their replies, all told together. Knows no sync.

    wait(waiter, mark)  ->  group of a Gathering  --  a sync  --  succeed() or fail(reason): each waiter is told

Thread: the reactor's alone.
"""
from libc.stdint cimport uint64_t

from kvcore.bytebuf cimport ByteBuf


cdef class Waiter:
    cdef object owner
    cdef uint64_t group         # number of the one it joined last
    cdef size_t place           # in that one

    # A sync covers all replies up to mark.
    cdef int released(self, uint64_t mark) except -1


cdef class Group:
    cdef uint64_t number        # no two have the same, and none has 0
    cdef list waiters
    cdef ByteBuf marks          # of uint64_t, one for each waiter


cdef class Gathering:
    cdef public bint holding
    cdef public Group group
    cdef public size_t enough


# As the method wait().
cdef int gathering_wait(Gathering g, Waiter waiter, uint64_t mark) except -1
