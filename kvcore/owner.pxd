"""Who may use a store: the thread, in the process, that opened it."""


cdef struct Owner:
    unsigned long thread
    long forks                  # count of forks before


cdef Owner owner_here() noexcept

# Raises UsageError in another thread, or in a child.
cdef int owner_check(const Owner* owner) except -1
