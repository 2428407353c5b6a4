"""Who may use a store: the thread, in the process, that opened it."""


cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()


cdef struct Owner:
    pthread_t thread
    long forks                  # count of forks before


cdef long forks                 # before now

cdef Owner owner_here() noexcept

# Raises UsageError.
cdef int owner_refuse(const Owner* owner) except -1


# Raises UsageError in another thread, or in a child.
cdef inline int owner_check(const Owner* owner) except -1:
    if owner.thread != pthread_self() or owner.forks != forks:
        owner_refuse(owner)
    return 0
