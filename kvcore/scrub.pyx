"""Scrub: read the sealed segments again and verify every record, to find damage while there is something to mend it with.

A pass is a generator of Jobs, see compaction.pxd: run() reads and verifies a piece, through a descriptor of its own; what
comes of it is noted on the owner's thread. A segment with damage is marked, so that no compaction drops or copies it.
"""
import os

from libc.errno cimport ENOENT
from libc.stdint cimport uint64_t

from kvcore.log cimport Job, Log, job_check
from kvcore.segment cimport NO_SLOT, SEGMENT_HEADER, Segment, segment_open_readonly
from kvcore.store cimport Store
from kvcore.walk cimport SPAN_DAMAGED, SPAN_END, Span, SpanKind, Walk, walk_begin, walk_lost, walk_step

from kvcore.errors import ClosedError
from kvcore.replay import DAMAGED
from kvcore.survey import WHAT, Damage


cdef enum:
    STEP = 256 << 10            # bytes of a segment verified at a time


cdef class Scrub:
    """The scrubbing of an open store. `bytes` (int) were verified since it was made; `passed_at` (unix seconds, int) is when
    the last full pass ended, 0: none has.

    report: called with each kvcore.survey.Damage when it is found first.
    """

    cdef Store store            # not its log, which goes when the store closes
    cdef object report
    cdef dict found             # segment id: list of Damage
    cdef readonly uint64_t bytes
    cdef readonly uint64_t passed_at

    def __init__(self, Store store not None, report=None):
        self.store = store
        self.report = report
        self.found = {}

    @property
    def damage(self):
        """What is known to be damaged in the segments that are still there: a list of kvcore.survey.Damage."""
        present = {(<Segment>segment).id for segment in log_of(self).segments if segment is not None}
        return [item for id in sorted(self.found) if id in present for item in self.found[id]]

    def steps(self):
        """One pass over the segments that are sealed now: an iterator of Jobs, each with `bytes` (int) when it has run.

        Raises StorageError when a segment cannot be opened, ClosedError; the next pass begins anew.
        """
        cdef Segment segment
        cdef VerifyJob job
        cdef list sealed = [s for s in log_of(self).segments if s is not None and (<Segment>s).sealed]
        for segment in sealed:
            reading = Reading(segment)
            known, self.found[segment.id] = self.found.get(segment.id, []), []
            while not is_dropped(segment) and not (<Reading>reading).ended:
                job = VerifyJob(log_of(self))
                job.reading = reading
                yield job
                self.note(segment, job, known)
        self.passed_at = log_of(self).files.call.clock(log_of(self).files.ctx) // 1000

    cdef int note(self, Segment segment, VerifyJob job, list known) except -1:
        if job.error is not None and job.error.errno == ENOENT:
            job.reading.ended = True
            if is_dropped(segment):
                return 0
            name = os.fsdecode(os.path.basename(segment.path))
            job.damage = [Damage(name, 0, segment.flushed, "is missing; what is read of it is only held by this process", [],
                                 True, True)]
        else:
            job_check(job)
        self.bytes += job.bytes
        for item in job.damage:
            segment.damaged = True
            self.found[segment.id].append(item)
            if self.report is not None and item not in known:
                self.report(item)
        return 0


cdef Log log_of(Scrub scrub):
    if scrub.store.closed:
        raise ClosedError("the store is closed")
    return scrub.store.log


# A compaction has what is alive of it elsewhere, and its file goes, or is gone.
cdef inline bint is_dropped(Segment s) noexcept:
    return s.hidden or s.slot == NO_SLOT


cdef class Reading:
    """How far a segment is verified."""

    cdef bytes directory
    cdef Segment file           # opened anew, when the first piece is read
    cdef Segment original       # not touched by run()
    cdef Walk walk
    cdef uint64_t end
    cdef bint ended

    def __cinit__(self, Segment original not None):
        self.original = original
        self.end = original.flushed
        self.walk = Walk()
        self.walk.lenient = True
        self.walk.chunk = STEP
        walk_begin(self.walk, SEGMENT_HEADER)


cdef class VerifyJob(Job):
    """Verify the next piece of a segment."""

    cdef Reading reading
    cdef readonly uint64_t bytes
    cdef list damage

    cdef int work(self) except -1:
        cdef Reading reading = self.reading
        cdef Walk w = reading.walk
        cdef uint64_t start = w.offset
        cdef Span span
        cdef SpanKind kind
        self.damage = []
        if reading.file is None:
            reading.file = open_again(self.log, reading.original)
        while w.offset - start < STEP and not reading.ended:
            kind = walk_step(w, reading.file, reading.end, False, &span)
            if kind == SPAN_DAMAGED:
                self.damage.append(damage_of(w, reading.file, &span))
            reading.ended = kind == SPAN_END
        self.bytes = w.offset - start
        return 0


cdef Segment open_again(Log log, Segment original):
    cdef Segment s = segment_open_readonly(log.files, log.path, original.id)
    # What the header says is known from the opening. Where the file has become shorter, zeros are read.
    s.seed = original.seed
    s.sealed = True
    s.allocated = original.flushed
    s.min_version = original.min_version
    s.max_version = original.max_version
    return s


cdef object damage_of(Walk w, Segment s, const Span* span):
    keys = [key for _, _, key, _, _ in walk_lost(w, s, span)]
    what = WHAT[DAMAGED] + ("; the disk could not read all bytes" if w.unreadable else "")
    return Damage(os.fsdecode(os.path.basename(s.path)), span.start, span.end - span.start, what,
                  [key for key in keys if key], True, None in keys)
