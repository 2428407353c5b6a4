cimport cython
from libc.errno cimport EINVAL, ENOSYS, EOPNOTSUPP
from posix.fcntl cimport O_RDWR


cdef extern from "<fcntl.h>" nogil:
    enum: O_DIRECT


cdef enum:
    STEP_LARGEST = 1 << 20          # bytes of disk space taken ahead at a time: a fraction of a millisecond
    STEP_ZEROS = 1 << 17            # and written: about as long as a sync takes
    STEP_SMALLEST = 512
    PART = 64                       # at most one part in so many of what was written; but for two pages


@cython.no_gc_clear                 # the log closes it when it is freed itself
cdef class Ahead:
    """Space ahead of one log."""

    def __cinit__(self):
        self.zeros = True
        self.fd = -1


cdef Ahead ahead_new(Files files):
    cdef Ahead a = Ahead()
    a.files = files
    return a


cdef void ahead_reserve(Ahead a, Segment s, uint64_t end, uint64_t total, uint64_t most) noexcept:
    cdef uint64_t step = min(<uint64_t>STEP_LARGEST, total // PART) & ~<uint64_t>(STEP_SMALLEST - 1)
    if step and end > s.allocated and not a.refused:
        # A refusal (no space for the step) is no loss: the write itself decides.
        reserve(a, s, min(end + step, max(most, end)))


cdef bint reserve(Ahead a, Segment s, uint64_t end) noexcept:
    cdef int result = a.files.call.fallocate(a.files.ctx, s.fd, s.allocated, end - s.allocated)
    if result == 0:
        s.allocated = end
    elif result in (-EOPNOTSUPP, -ENOSYS, -EINVAL):
        a.refused = True
        a.zeros = False
    return result == 0


cdef inline uint64_t page_after(uint64_t offset) noexcept:
    return (offset + PAGE - 1) & ~<uint64_t>(PAGE - 1)


cdef void ahead_zero(Ahead a, Segment s, uint64_t synced, uint64_t total, uint64_t most) noexcept:
    cdef uint64_t step = max(min(<uint64_t>STEP_ZEROS, total // (2 * PART)) & ~<uint64_t>(PAGE - 1), <uint64_t>PAGE)
    cdef uint64_t start = page_after(s.allocated), end = min(start + step, most & ~<uint64_t>(PAGE - 1))
    if synced > step or start >= s.flushed + step or start >= end or not a.zeros:
        return
    end_zeros(a)                    # of the segment before, or cut off after a flush that failed
    if a.segment is not s:
        close_file(a)
        open_file(a, s)
    if a.zeros and reserve(a, s, end):
        a.zeros = a.under_way = a.files.call.zero(a.files.ctx, a.fd, start, end - start, &a.queue) == 0
        a.start = start


cdef void open_file(Ahead a, Segment s) noexcept:
    cdef const char* path = s.path
    with nogil:
        a.fd = a.files.call.open(a.files.ctx, path, O_RDWR | O_DIRECT, 0)
    a.segment = s
    a.zeros &= a.fd >= 0


cdef void end_zeros(Ahead a) noexcept:
    if a.under_way:
        with nogil:
            a.zeros = a.files.call.zeroed(a.files.ctx, a.queue) == 0
        a.under_way = False


cdef uint64_t ahead_meet(Ahead a, Segment s, uint64_t end) noexcept:
    if a.segment is s and page_after(end) > a.start:
        end_zeros(a)
    return min(page_after(end), max(s.allocated, end))


cdef void close_file(Ahead a) noexcept:
    if a.fd >= 0:
        a.files.call.close(a.files.ctx, a.fd)
        a.fd = -1
    a.segment = None


cdef void ahead_close(Ahead a) noexcept:
    end_zeros(a)
    if a.queue:
        with nogil:
            a.files.call.zero_end(a.files.ctx, a.queue)
        a.queue = 0
    close_file(a)
