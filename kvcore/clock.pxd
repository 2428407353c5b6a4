"""The clock by which turns, waits and work are measured."""
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


# Seconds since some moment in the past.
cdef inline double clock() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9
