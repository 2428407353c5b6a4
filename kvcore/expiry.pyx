from libc.string cimport memcpy

from kvcore.bytebuf cimport bytebuf_reserve
from kvcore.hashindex cimport Entry, index_first, index_next, index_remove
from kvcore.log cimport log_bury, log_copy, log_now
from kvcore.record cimport RECORD_DEADLINE, RECORD_EXPIRES, RECORD_HEADER
from kvcore.types cimport uint8_t


cdef enum:
    FEW = 4096                  # entries below which stale ones are not worth looking for


cdef class Deadlines:
    """The deadlines of one store."""

    def __cinit__(self):
        self.heap = ByteBuf()
        self.check_at = FEW


cdef int deadlines_reserve(Deadlines d) except -1:
    bytebuf_reserve(d.heap, sizeof(Deadline))
    return 0


cdef inline Deadline* entries(Deadlines d) noexcept nogil:
    return <Deadline*>d.heap.data


cdef inline size_t length(Deadlines d) noexcept nogil:
    return d.heap.len // sizeof(Deadline)


cdef void deadlines_add(Deadlines d, uint64_t at, uint64_t hash) noexcept:
    cdef Deadline* heap = entries(d)
    cdef size_t i = length(d), parent
    d.heap.len += sizeof(Deadline)
    while i > 0:
        parent = (i - 1) // 2
        if heap[parent].at <= at:
            break
        heap[i] = heap[parent]
        i = parent
    heap[i].at = at
    heap[i].hash = hash


# Let the entry at i sink to its place.
cdef void sink(Deadlines d, size_t i) noexcept nogil:
    cdef Deadline* heap = entries(d)
    cdef Deadline moved = heap[i]
    cdef size_t n = length(d), child
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and heap[child + 1].at < heap[child].at:
            child += 1
        if heap[child].at >= moved.at:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = moved


cdef void pop(Deadlines d) noexcept nogil:
    cdef Deadline* heap = entries(d)
    d.heap.len -= sizeof(Deadline)
    if d.heap.len:
        heap[0] = heap[length(d)]
        sink(d, 0)


cdef uint64_t deadline_of(Log log, Location at) noexcept:
    cdef uint8_t raw[RECORD_HEADER + RECORD_DEADLINE]
    cdef uint64_t deadline = 0
    if at.length < sizeof(raw):
        return 0
    at.length = sizeof(raw)
    if log_copy(log, at, raw) == 0 and raw[19] & RECORD_EXPIRES:
        memcpy(&deadline, raw + RECORD_HEADER, RECORD_DEADLINE)
    return deadline


cdef size_t deadlines_sweep(Deadlines d, HashIndex index, Log log, size_t limit) noexcept:
    cdef uint64_t now = log_now(log), deadline
    cdef size_t done = 0
    cdef uint64_t hash
    cdef Entry* entry
    while done < limit and d.heap.len and entries(d)[0].at <= now:
        hash = entries(d)[0].hash
        pop(d)
        done += 1
        entry = index_first(index, hash)
        while entry != NULL:
            deadline = deadline_of(log, entry.at)
            if 0 < deadline <= now:
                log_bury(log, entry.at)
                index_remove(index, hash, entry)
                entry = index_first(index, hash)
            else:
                entry = index_next(index, hash, entry)
    return done


cdef bint is_alive(Deadline* deadline, HashIndex index, Log log) noexcept:
    cdef Entry* entry = index_first(index, deadline.hash)
    while entry != NULL:
        if deadline_of(log, entry.at) == deadline.at:
            return True
        entry = index_next(index, deadline.hash, entry)
    return False


cdef int deadlines_tidy(Deadlines d, HashIndex index, Log log) except -1:
    cdef Deadline* heap = entries(d)
    cdef size_t i, kept = 0
    if length(d) < d.check_at:
        return 0
    for i in range(length(d)):
        if is_alive(&heap[i], index, log):
            heap[kept] = heap[i]
            kept += 1
    d.heap.len = kept * sizeof(Deadline)
    i = kept // 2
    while i > 0:
        i -= 1
        sink(d, i)
    d.check_at = max(<size_t>FEW, 2 * kept)
    return 0
