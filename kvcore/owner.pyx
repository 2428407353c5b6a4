import os

from cpython.pythread cimport PyThread_get_thread_ident

from kvcore.errors import UsageError


cdef long forks = 0


def count_fork():
    """Make stores that were opened before a fork refuse their child."""
    global forks
    forks += 1


os.register_at_fork(after_in_child=count_fork)


cdef Owner owner_here() noexcept:
    cdef Owner owner
    owner.thread = PyThread_get_thread_ident()
    owner.forks = forks
    return owner


cdef int owner_check(const Owner* owner) except -1:
    if owner.forks != forks:
        raise UsageError("the store was opened by the process that forked this one; open it in one process only")
    if owner.thread != PyThread_get_thread_ident():
        raise UsageError("the store belongs to the thread that opened it")
    return 0
