from kvcore.store cimport store_faults


cdef double LONG = 50e-6        # seconds: no disk answers faster, and most runs do not take so long
cdef double DOUBT = 10.0        # seconds


cdef class Residency:
    """Of one store's data. Made in the thread of the reactor."""

    def __cinit__(self):
        self.faults = store_faults()

    def doubt(self):
        """Ask from now on before each command; for ever: for tests."""
        self.until = float("inf")


cdef void residency_renew(Residency r, double now) noexcept:
    r.until = max(r.until, now + DOUBT)


cdef void residency_ran(Residency r, double started, double ended) noexcept:
    cdef long count
    if ended - started < LONG:
        return
    count = store_faults()
    if count != r.faults:
        r.faults = count
        residency_renew(r, ended)
