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
    """Those who wait for one sync; len() says how many."""

    def __cinit__(self):
        global groups
        groups += 1
        self.number = groups
        self.waiters = []
        self.marks = ByteBuf()

    def __len__(self):
        return len(self.waiters)

    def succeed(self):
        """Tell all that what they wait for is on the disk."""
        cdef uint64_t* marks = <uint64_t*>self.marks.data
        cdef Py_ssize_t i
        for i in range(len(self.waiters)):
            try:
                (<Waiter>self.waiters[i]).released(marks[i])
            except Exception:
                give_up(self.waiters[i])

    def fail(self, reason):
        """Tell all that it is not (reason: str)."""
        for waiter in self.waiters:
            try:
                waiter.failed(reason)
            except Exception:
                give_up(waiter)


# One connection's trouble is not that of the others in the group.
cdef int give_up(Waiter waiter) except -1:
    log.failure("a connection could not be answered after a sync")
    waiter.abort()
    return 0


cdef class Gathering:
    """Collects waiters until somebody takes `group` (Group) and puts a new one there. A subclass says in gathered() what
    comes when the group has its first waiter.

    `holding` (bool): replies to writes have to wait. It is looked at before each chunk. `enough` (int): a group of so many
    is announced so, too; 0: of none.
    """

    def __cinit__(self, *args):
        self.group = Group()

    def wait(self, Waiter waiter not None, uint64_t mark):
        """Tell waiter when all that its session answered up to mark is on the disk, or that it is not."""
        gathering_wait(self, waiter, mark)


cdef int gathering_wait(Gathering g, Waiter waiter, uint64_t mark) except -1:
    cdef Group group = g.group
    if waiter.group == group.number:
        (<uint64_t*>group.marks.data)[waiter.place] = mark
        return 0
    bytebuf_append(group.marks, &mark, sizeof(mark))
    group.waiters.append(waiter)
    waiter.group = group.number
    waiter.place = len(group.waiters) - 1
    if waiter.place == 0 or waiter.place + 1 == g.enough:
        g.gathered()
    return 0
