"""Who waits for a sync: each with the mark up to which it covers their replies, all told together. Knows no sync.

    group_join(group, waiter, mark)  --  a sync  --  group_succeed(group) or group_fail(group, reason)

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


# Have the waiter in the group, with this mark. False: it was there already, with a lower one.
cdef bint group_join(Group group, Waiter waiter, uint64_t mark) except -1

# Tell all that what they wait for is on the disk.
cdef int group_succeed(Group group) except -1

# Tell all that it is not.
cdef int group_fail(Group group, str reason) except -1


cdef inline size_t group_size(Group group) noexcept:
    return <size_t>len(group.waiters)
