"""The operations of one segment, for the operations log: a record is an operation, its version says when it was done."""
import os
from collections import namedtuple

from libc.stdint cimport uint64_t

from kvcore.files cimport files_check
from kvcore.record cimport (
    RECORD_HEADER, RECORD_KIND, RECORD_MORE, RECORD_TOMBSTONE, Record, record_decode)
from kvcore.segment cimport SEGMENT_HEADER, Segment
from kvcore.survey cimport Survey
from kvcore.walk cimport (
    SPAN_BROKEN, SPAN_DAMAGED, SPAN_GOOD, Span, SpanKind, Walk, walk_begin, walk_data_end, walk_fetch, walk_step)

from kvcore.survey import Damage


cdef enum:
    CHUNK = 64 << 10            # bytes read at a time: many segments may be read side by side

# version (int: unix milliseconds << 20 | counter), key (bytes), deleted (bool), value_size (int: bytes as stored), deadline
# (unix milliseconds; 0: none), number in its batch and size of the batch (0 of 0: none), segment (int), offset (int).
Operation = namedtuple(
    "Operation", ("version", "key", "deleted", "value_size", "deadline", "number", "batch_size", "segment", "offset"))


cdef class Reader:
    """Reads the operations of a stretch of one segment, in the order in which they stand there; goes on where it stopped."""

    cdef readonly Segment segment
    cdef Walk walk
    cdef uint64_t end               # of the stretch; 0: that of the segment, wherever it is by then
    cdef list damage                # of Damage; more is put there

    def __init__(self, Survey survey not None, Segment segment not None, list damage not None, start=SEGMENT_HEADER, end=0):
        self.segment = segment
        self.walk = Walk()
        self.walk.chunk = CHUNK
        self.walk.lenient = True
        self.walk.newest = survey.replay.newest
        self.walk.latest_version = survey.replay.latest_version
        self.end = end
        self.damage = damage
        walk_begin(self.walk, start)

    def is_empty(self):
        """Does the segment hold nothing? (bool) Raises StorageError."""
        return data_end_of(self) == SEGMENT_HEADER

    def read(self, last):
        """Iterate over the Operations from where the reader stands to the end.

        last (bool): nothing was written behind this segment, so what is not good at its end may be still being written.
        Raises StorageError.
        """
        cdef uint64_t data_end = data_end_of(self)
        self.walk.window.len = 0
        self.walk.looked = False
        while True:
            span = next_span(self, data_end, last)
            if span is None:
                return
            at, end, batch_size = span
            number = 0
            while at < end:
                number += 1
                operation, at = operation_at(self, at, number, batch_size)
                if operation is not None:
                    yield operation

    def runs(self):
        """Stretches in which versions ascend: list of (lowest version, start, end). The reader is then at the end."""
        found = []
        previous = -1
        for operation in self.read(False):
            if operation.version < previous or not found:
                found.append([operation.version, operation.offset, 0])
            previous = operation.version
        for run, after in zip(found, [*found[1:], [0, self.walk.offset, 0]]):
            run[2] = after[1]
        return [tuple(run) for run in found]


cdef uint64_t data_end_of(Reader reader) except 0:
    cdef Segment s = reader.segment
    if reader.end:
        return reader.end
    if s.sealed:
        return s.allocated
    s.allocated = files_check(s.files.call.size(s.files.ctx, s.fd), "examine", s.path)
    return walk_data_end(reader.walk, s)


# (start, end, operations of the batch or 0) of the next good records; None at the end.
cdef tuple next_span(Reader reader, uint64_t data_end, bint last):
    cdef Span span
    cdef SpanKind kind
    while True:
        kind = walk_step(reader.walk, reader.segment, data_end, last, &span)
        if kind == SPAN_GOOD:
            return span.start, span.end, batch_size(reader, span.start, span.end)
        if kind != SPAN_BROKEN and kind != SPAN_DAMAGED:
            return None
        name = os.fsdecode(os.path.basename(reader.segment.path))
        reader.damage.append(Damage(name, span.start, span.end - span.start, "operations may be missing", [], True, True))


# How many operations the batch in [start, end) has; 0: it is a single record.
cdef uint64_t batch_size(Reader reader, uint64_t start, uint64_t end) except? 0:
    cdef Segment s = reader.segment
    cdef Record r
    cdef uint64_t count = 0
    record_decode(walk_fetch(reader.walk, s, start, RECORD_HEADER, s.allocated), s.allocated - start, &r)
    if r.flags & RECORD_MORE == 0:
        return 0
    while start < end:
        record_decode(walk_fetch(reader.walk, s, start, RECORD_HEADER, s.allocated), s.allocated - start, &r)
        count += r.flags & RECORD_KIND == 0
        start += r.size
    return count


# The operation at offset, None for a mark or a commit; and where the next one stands.
cdef tuple operation_at(Reader reader, uint64_t offset, number, batch):
    cdef Segment s = reader.segment
    cdef Record r
    record_decode(walk_fetch(reader.walk, s, offset, RECORD_HEADER, s.allocated), s.allocated - offset, &r)
    record_decode(walk_fetch(reader.walk, s, offset, r.size, s.allocated), s.allocated - offset, &r)
    if r.flags & RECORD_KIND:
        return None, offset + r.size
    operation = Operation(
        r.version, r.key.ptr[:r.key.len], r.flags & RECORD_TOMBSTONE != 0, r.value.len, r.expires_at, number if batch else 0,
        batch, s.id, offset)
    return operation, offset + r.size
