from kvcore.bytebuf cimport bytebuf_append

from twisted.logger import Logger

log = Logger()

cdef uint64_t groups = 0


cdef class Waiter:
    """One connection, until close(). owner: has released(mark), failed(reason) and abort()."""

    def __cinit__(self, owner, *args):
        self.owner = owner

    cdef int released(self, uint64_t mark) except -1:
        if self.owner is not None:
            self.owner.released(mark)
        return 0

    def failed(self, reason):
        """The sync failed (reason: str)."""
        if self.owner is not None:
            self.owner.failed(reason)

    def abort(self):
        """It could not be told: cut the connection."""
        if self.owner is not None:
            self.owner.abort()

    def close(self):
        """The connection is gone. Let go of the owner, for prompt freeing."""
        self.owner = None


cdef class Group:
    """Those who wait for one sync."""

    def __cinit__(self):
        global groups
        groups += 1
        self.number = groups
        self.waiters = []
        self.marks = ByteBuf()


cdef bint group_join(Group group, Waiter waiter, uint64_t mark) except -1:
    if waiter.group == group.number:
        (<uint64_t*>group.marks.data)[waiter.place] = mark
        return False
    bytebuf_append(group.marks, &mark, sizeof(mark))
    waiter.group = group.number
    waiter.place = group_size(group)
    group.waiters.append(waiter)
    return True


cdef int group_succeed(Group group) except -1:
    cdef uint64_t* marks = <uint64_t*>group.marks.data
    cdef size_t i
    for i in range(group_size(group)):
        try:
            (<Waiter>group.waiters[i]).released(marks[i])
        except Exception:
            give_up(group.waiters[i])
    return 0


cdef int group_fail(Group group, str reason) except -1:
    for waiter in group.waiters:
        try:
            waiter.failed(reason)
        except Exception:
            give_up(waiter)
    return 0


# One connection's trouble is not that of the others in the group.
cdef int give_up(Waiter waiter) except -1:
    log.failure("a connection could not be answered after a sync")
    waiter.abort()
    return 0
