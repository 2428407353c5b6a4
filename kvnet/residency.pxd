"""Whether records may be out of memory: only then is it worth asking, before a command runs, if it would wait for the disk.

    a run took long  ->  did this thread wait for a page?  ->  doubt, for some seconds  ->  each command is asked about first

The page may have been one of the program's: when many records in a row were in memory there is no more doubt.

Asking costs a system call a command, several times what a read from memory does; so it is not done as long as all fits.
Times are those of CLOCK_MONOTONIC, in seconds. Thread: the reactor's alone.
"""

from libc.stdint cimport uint64_t


cdef class Residency:
    cdef double until           # doubt ends
    cdef uint64_t left          # so many records in a row that are in memory end it, too
    cdef long faults            # times that this thread waited for a page


# Is there doubt?
cdef inline bint residency_doubted(Residency r, double now) noexcept:
    return now < r.until

# So many records were in memory.
cdef inline void residency_found(Residency r, uint64_t records) noexcept:
    r.left -= min(r.left, records)
    if r.left == 0:
        r.until = 0

# A record was not in memory: the doubt goes on.
cdef void residency_renew(Residency r, double now) noexcept

# A run began and ended so.
cdef void residency_ran(Residency r, double started, double ended) noexcept
