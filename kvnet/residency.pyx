from kvcore.store cimport store_faults


cdef double LONG = 50e-6        # seconds: no disk answers faster, and most runs do not take so long
cdef double DOUBT = 10.0        # seconds
cdef enum:
    ENOUGH = 1 << 16            # records in memory: under load less than a second of asking


cdef class Residency:
    """Of one store's data. Made in the thread of the reactor."""

    def __cinit__(self):
        self.faults = store_faults()

    def doubt(self, uint64_t records=1 << 63):
        """Ask from now on before each command, until so many records in a row were in memory: for tests."""
        self.until = float("inf")
        self.left = records


cdef void residency_renew(Residency r, double now) noexcept:
    r.until = max(r.until, now + DOUBT)
    r.left = max(r.left, <uint64_t>ENOUGH)


cdef void residency_ran(Residency r, double started, double ended) noexcept:
    cdef long count
    if ended - started < LONG:
        return
    count = store_faults()
    if count != r.faults:
        r.faults = count
        residency_renew(r, ended)
