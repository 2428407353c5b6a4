import os

from kvcore.errors import UsageError


forks = 0


def count_fork():
    """Make stores that were opened before a fork refuse their child."""
    global forks
    forks += 1


os.register_at_fork(after_in_child=count_fork)


cdef Owner owner_here() noexcept:
    cdef Owner owner
    owner.thread = pthread_self()
    owner.forks = forks
    return owner


cdef int owner_refuse(const Owner* owner) except -1:
    if owner.forks != forks:
        raise UsageError("the store was opened by the process that forked this one; open it in one process only")
    raise UsageError("the store belongs to the thread that opened it")
