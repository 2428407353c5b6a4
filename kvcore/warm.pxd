"""Records that are not in memory, and jobs that bring them there: so the owner of a store need not wait for the disk.

    warm_key, warm_next     None: what is read next is in memory; or a job. Run it on any thread, finish it, ask again
    warm_scan               a job that also sorts what was written since the last scan, if that is much; what a search reads
                            is known only when it has been done: with doubt whether all is in memory there is always one

What was in memory a moment ago may have been dropped since: nothing here is more than a hint. Bytes that cannot be read
end no job; who reads them next is told.
Thread: the owner's alone, except the run() of jobs.
"""
from libc.stdint cimport uint32_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Job, Log
from kvcore.order cimport Order
from kvcore.scan cimport Cursor
from kvcore.segment cimport Segment
from kvcore.types cimport Slice


cdef struct Stretch:
    uint32_t segment            # place in WarmJob.segments
    uint32_t offset
    uint32_t length


# A part of an order, and the records that it names.
cdef class Names:
    cdef Segment segment
    cdef Order order
    cdef size_t first
    cdef size_t count


cdef class WarmJob(Job):
    cdef list segments
    cdef ByteBuf stretches      # of Stretch
    cdef size_t bytes           # of all of them
    cdef readonly list orders   # of OrderJob, to be done as well
    cdef list names             # of Names: read as far as `values` says
    cdef bint values
    cdef bytes lo               # the names are those from here on, and those of the orders; None: from `first` of each
    cdef bytes hi               # the first name beyond is read, too; None: there is none
    cdef readonly bint cold     # something was not in memory; known when it has run
    cdef readonly size_t looked         # records of the names that were looked for in memory
    cdef int sort(self) except -1


# How often this thread has waited for a page that was read from the disk.
cdef long warm_faults() noexcept nogil

# Add what reading `key` has to wait for to `job`, or to a new one when that is None; None when there is nothing. value: the
# whole record is needed, not only its key.
cdef WarmJob warm_key(HashIndex index, Log log, Slice key, bint value, WarmJob job)

# A job that makes the orders that scan_prefix needs and, with `doubt`, reads what it will, and the first records; values:
# whole ones. None when there is nothing to do.
cdef WarmJob warm_scan(Log log, Slice prefix, bint values, bint doubt)

# A job for the names that a cursor reads next, unless they have been brought; whole records with `values`.
cdef WarmJob warm_next(Cursor c, bint values)
