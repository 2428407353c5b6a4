cdef extern from "<sys/resource.h>" nogil:
    struct rusage:
        long ru_majflt
    int getrusage(int who, rusage* usage)
    enum: RUSAGE_THREAD


cdef double LONG = 50e-6        # seconds: no disk answers faster, and most runs do not take so long
cdef double DOUBT = 10.0        # seconds


cdef class Residency:
    """Of one store's data. Made in the thread of the reactor."""

    def __cinit__(self):
        self.faults = faults()

    def doubt(self):
        """Ask from now on before each command; for ever: for tests."""
        self.until = float("inf")


cdef long faults() noexcept:
    cdef rusage usage
    getrusage(RUSAGE_THREAD, &usage)
    return usage.ru_majflt


cdef void residency_renew(Residency r, double now) noexcept:
    r.until = max(r.until, now + DOUBT)


cdef void residency_ran(Residency r, double started, double ended) noexcept:
    cdef long count
    if ended - started < LONG:
        return
    count = faults()
    if count != r.faults:
        r.faults = count
        residency_renew(r, ended)
