from libc.stdint cimport uint64_t

from kvcore.checkpoint cimport checkpoint_due
from kvcore.compaction cimport Compaction, compactable, is_useless
from kvcore.expiry cimport Deadlines
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport RESERVE_LAST, Log, log_give_up_reserve, log_order_job, log_rotate
from kvcore.segment cimport SEGMENT_HEADER, Segment

from kvcore.checkpoint import checkpoint_steps


cdef enum:
    AT_ONCE = 8                 # sources of a run that have to be read, unless tombstones need them all
    BEHIND = 4                  # segments
    RESERVE_OTHER = 16 << 10    # bytes of its part of the reserve that manifest and output need besides what is copied
    SMALL_SHARE = 4             # a segment of less than one part in so many of the full size is small
    LITTLE = 512 << 10          # bytes that are dead in the active segment and may be left there


def due_steps(Compaction compaction not None, Log log not None, HashIndex index not None, Deadlines deadlines not None,
              bint thorough):
    """What should be done next: an iterator of Jobs, or None. The buffer of the log is empty. thorough: see due_sources."""
    cdef list sources
    # Checkpoints of a fast writer would leave no time to compact; and a compaction ends with one.
    if checkpoint_due(log, index) and not due_urgently(log):
        return checkpoint_steps(log, index, deadlines)
    if compaction.running:
        return None             # somebody drives one by hand
    if thorough and is_rotation_due(log):
        log_rotate(log)
    sources = due_sources(compaction, log, thorough)
    if log.full_disk or log.short_of_space:
        if not sources:
            return None
        log_give_up_reserve(log, 0)
    if sources:
        return compaction.steps(log, index, deadlines, sources)
    return order_steps(log, index) if unsorted(log) else None


cdef list due_sources(Compaction c, Log log, bint thorough):
    cdef Segment s
    cdef list sealed = compactable(log)
    cdef list chosen = [], useless = []
    cdef uint64_t buried = 0, used = 0, small = 0
    for s in sealed:
        used += s.flushed
        buried += s.buried
        small += is_small(log, s)
    if buried > c.stuck and (buried - c.stuck) * (10 if thorough else 3) > used:
        # Tombstones go only when no older record can be left outside: all together, then.
        return fitting(log, sealed)
    for s in sealed:
        gain = s.dead - min(s.dead, s.buried)
        if is_useless(s):
            useless.append(s)
        elif gain * 20 > s.flushed if thorough else gain * 10 > s.flushed * 3:
            chosen.append(s)
        elif small > AT_ONCE and is_small(log, s):
            chosen.append(s)
    chosen.sort(key=waste, reverse=True)
    chosen = useless + chosen[:AT_ONCE]
    return fitting(log, chosen) if len(chosen) > 1 or any(waste(s) for s in chosen) else []


# On a full disk: those whose copies fit into compaction's part of the reserve. A run that is given up half-way would use all
# of it up for nothing, and deletes go on meanwhile.
cdef list fitting(Log log, list sources):
    cdef Segment s
    cdef list kept = []
    cdef uint64_t needed, room = min(log.reserve, <uint64_t>RESERVE_LAST)
    if not log.full_disk and not log.short_of_space:
        return sources
    room -= min(room, <uint64_t>RESERVE_OTHER)
    for s in sources:
        needed = s.flushed - SEGMENT_HEADER - s.dead + s.buried
        if needed <= room:
            kept.append(s)
            room -= needed
    return kept


cdef inline bint is_small(Log log, Segment s) noexcept:
    return s.flushed * SMALL_SHARE < log.segment_size


def waste(Segment s not None):
    return <double>(s.dead - min(s.dead, s.buried)) / s.flushed


cdef bint due_urgently(Log log) noexcept:
    cdef Segment s
    cdef uint64_t live = 0, reclaimable = 0
    for s in log.segments:
        if s is not None and s.sealed and not s.damaged:
            live += s.flushed - SEGMENT_HEADER - s.dead
            reclaimable += s.dead - min(s.dead, s.buried)
    return reclaimable > live + BEHIND * log.segment_size


# Is the active segment the one that holds too many dead bytes to rest on?
cdef bint is_rotation_due(Log log) noexcept:
    cdef Segment s
    cdef uint64_t live = 0
    for s in log.segments:
        if s is not None:
            live += s.flushed - s.dead
    return log.active.flushed > SEGMENT_HEADER and log.active.dead * 20 > live and (
        log.active.dead > min(<uint64_t>LITTLE, log.segment_size // 8))


cdef list unsorted(Log log):
    cdef Segment s
    return [s for s in compactable(log) if s.unsorted]


def order_steps(Log log not None, HashIndex index not None):
    """Jobs that give sealed segments their final orders (iterator), until something is more urgent."""
    while unsorted(log) and not due_urgently(log) and not checkpoint_due(log, index):
        yield next_order(log)


# Apart, as a generator would hold on to the segment. The job makes it no longer unsorted.
cdef next_order(Log log):
    return log_order_job(log, unsorted(log)[0], True)
