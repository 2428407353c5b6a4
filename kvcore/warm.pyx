from libc.stdint cimport uint64_t

from kvcore.bytebuf cimport bytebuf_append
from kvcore.hashindex cimport Entry, index_first, index_hash, index_next
from kvcore.log cimport OrderJob, log_order_job, log_segment
from kvcore.order cimport order_offsets, order_seek, order_start
from kvcore.record cimport RECORD_DEADLINE, RECORD_HEADER, Record
from kvcore.scan cimport BLOCK, Source, prefix_end
from kvcore.segment cimport segment_await, segment_fetch, segment_header, segment_resident
from kvcore.types cimport slice_of


cdef enum:
    AHEAD = 4096                # names brought at a time, of all orders together
    MOST_BYTES = 8 << 20        # bytes of their records, about, of each order; of one job for keys
    LONGEST = 1 << 20           # bytes of one record; the kernel reads on by itself
    SORTED_AT_ONCE = 256 << 10  # bytes of new records that a search may have to sort: half a millisecond
    PART = 64                   # reads begun before the first is waited for
    BEGINNING = 128             # bytes of a record that hold its header and a usual key


cdef extern from "<sys/resource.h>" nogil:
    struct rusage:
        long ru_majflt
    int getrusage(int who, rusage* usage)
    enum: RUSAGE_THREAD


cdef long warm_faults() noexcept nogil:
    cdef rusage usage
    getrusage(RUSAGE_THREAD, &usage)
    return usage.ru_majflt


cdef class WarmJob(Job):
    def __cinit__(self, log):
        self.segments = []
        self.stretches = ByteBuf()
        self.orders = []
        self.names = []

    cdef int work(self) except -1:
        cdef Stretch* at = <Stretch*>self.stretches.data
        cdef size_t i, n = self.stretches.len // sizeof(Stretch)
        cdef Segment segment
        cdef Names names
        # All are begun before the first is waited for: the disk does several at a time.
        for i in range(n):
            segment = <Segment>self.segments[at[i].segment]
            with nogil:
                segment_fetch(segment, at[i].offset, at[i].length)
        for i in range(n):
            segment = <Segment>self.segments[at[i].segment]
            with nogil:
                segment_await(segment, at[i].offset, at[i].length)
        self.sort()
        faults = warm_faults()
        for names in self.names:
            bring_names(self, names)
        if warm_faults() != faults:
            self.cold = True        # what a search needs is read by searching
        return 0

    # Have the orders made that are lacking, here or by who is at it already.
    cdef int sort(self) except -1:
        cdef OrderJob job
        for job in self.orders:
            job.run()
            if self.lo is not None and job.made is not None:
                self.names.extend([beginning_of(job.segment, order) for order in job.made])
        return 0

    cdef int settle(self) except -1:
        cdef OrderJob job
        for job in self.orders:
            job.finish()
        return 0


cdef WarmJob warm_key(HashIndex index, Log log, Slice key, bint value, WarmJob job):
    cdef uint64_t hash = index_hash(index, key.ptr, key.len)
    cdef Entry* entry = index_first(index, hash)
    cdef Segment segment
    cdef Stretch stretch
    if job is not None and job.bytes > MOST_BYTES:
        return job
    while entry != NULL:
        segment = log_segment(log, entry.at.segment)
        stretch.offset = entry.at.offset
        stretch.length = entry.at.length
        if not value:
            stretch.length = <uint32_t>min(<size_t>stretch.length, RECORD_HEADER + RECORD_DEADLINE + key.len)
        if entry.at.offset < segment.flushed and not segment_resident(segment, stretch.offset, stretch.length):
            if job is None:
                job = WarmJob(log)
                job.cold = True
            stretch.segment = <uint32_t>len(job.segments)
            bytebuf_append(job.stretches, &stretch, sizeof(Stretch))
            job.segments.append(segment)
            job.bytes += stretch.length
        entry = index_next(index, hash, entry)
    return job


cdef class Names:
    """For WarmJob alone."""


cdef int bring_names(WarmJob job, Names names) except -1:
    if job.lo is not None:
        names.first = seek(names, job.lo)
    if job.hi is not None:
        bring(job, names, seek(names, job.hi), 2, True)
    return bring(job, names, names.first, names.count, job.values)


# The place before that of `key`.
cdef size_t seek(Names names, bytes key) except? 0:
    cdef Slice wanted = slice_of(<const char*>key, len(key))
    cdef size_t place
    with nogil:
        place = order_seek(names.order, names.segment, wanted)
    return place - 1 if place else 0


# Begin to read what is not in memory.
cdef void begin(WarmJob job, Segment segment, uint64_t offset, size_t n) noexcept nogil:
    if not segment_resident(segment, offset, n):
        job.cold = True
        segment_fetch(segment, offset, n)


# Read the records of `count` names from the place `first`: their headers and keys, or with `whole` all of them.
cdef int bring(WarmJob job, Names names, size_t first, size_t count, bint whole) except -1:
    cdef uint32_t offsets[PART]
    cdef size_t lengths[PART]
    cdef Segment segment = names.segment
    cdef Order order = names.order
    cdef Record r
    cdef size_t end = min(first + count, order.count), n, i
    with nogil:
        while first < end:
            n = min(end - first, <size_t>PART)
            if order_offsets(order, first, n, offsets) < 0:
                break
            first += n
            job.looked += n
            for i in range(n):
                begin(job, segment, offsets[i], min(<size_t>BEGINNING, <size_t>(segment.flushed - offsets[i])))
            for i in range(n):
                lengths[i] = 0
                if segment_header(segment, offsets[i], segment.flushed, &r) == 0:
                    lengths[i] = min(r.size if whole else r.size - r.value.len, <size_t>LONGEST)
                if lengths[i] > BEGINNING:
                    begin(job, segment, offsets[i], lengths[i])
            for i in range(n):
                segment_await(segment, offsets[i], lengths[i])
    return 0


# How many names to bring, when there are so many orders.
cdef size_t share(Segment segment, size_t orders) noexcept:
    cdef uint64_t usual = segment.flushed // (segment.records + 1) + 1
    return max(<size_t>(2 * BLOCK), min(<size_t>AHEAD // orders, <size_t>(MOST_BYTES // usual)))


cdef Names names_of(Segment segment, Order order, size_t first, size_t count):
    cdef Names names = Names()
    names.segment = segment
    names.order = order
    names.first = first
    names.count = count
    return names


# The cursor reads one block at once.
cdef inline Names beginning_of(Segment segment, Order order):
    return names_of(segment, order, 0, BLOCK + 2)


# Would it take long to make the orders that this segment lacks?
cdef bint is_unsorted(Segment segment) noexcept:
    cdef uint64_t start = order_start(segment)
    return not (segment.damaged and segment.sealed) and (start == 0 or segment.flushed - start > SORTED_AT_ONCE)


cdef WarmJob warm_scan(Log log, Slice prefix, bint values, bint doubt):
    cdef WarmJob job = WarmJob(log)
    cdef Segment segment
    for segment in log.segments:
        if segment is None:
            continue
        # One that is being sealed has orders of its own, as a rule: its final one is not waited for.
        if is_unsorted(segment):
            job.orders.append(segment.sorting or log_order_job(log, segment, False))
        elif doubt and not segment.damaged:
            job.names.extend([beginning_of(segment, order) for order in segment.runs or ()])
    if doubt:
        job.lo = prefix.ptr[:prefix.len]
        job.hi = prefix_end(job.lo)
        job.values = values
    return job if doubt or job.orders else None


# Are there names in the next block that were not brought?
cdef inline bint is_cold(Source source) noexcept:
    return source.warm < min(source.next + BLOCK, source.end)


cdef WarmJob warm_next(Cursor c, bint values):
    cdef WarmJob job
    cdef Source source
    cdef size_t n
    if not c.heap:
        return None
    source = <Source>c.heap[0]
    if source.at + 1 < source.count or not is_cold(source):
        return None         # the next step reads no more names, or such as were brought
    job = WarmJob(c.log)
    job.values = values
    for source in c.heap:
        if is_cold(source):
            n = share(source.segment, len(c.heap))
            job.names.append(names_of(source.segment, source.order, source.next, n))
            source.warm = source.next + n
    return job
