"""Walk over the bytes of one segment file: the good records, in spans that count together, and the damage between them.
docs/format.md ("Opening", 3 to 5).

    | header | record | batch ... commit | damaged bytes | record | half a batch | torn tail |
               GOOD     GOOD               DAMAGED         GOOD     BROKEN         TORN

Reads through the descriptor, not the mapping: an unreadable page is then an ordinary error.
Thread: any one thread at a time. A pointer from walk_fetch lives until the next call.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.record cimport Record
from kvcore.segment cimport Segment
from kvcore.types cimport uint8_t


cdef enum SpanKind:
    SPAN_END = 0                # no more bytes
    SPAN_GOOD = 1               # good records that count: one, or those of a batch with its commit
    SPAN_BROKEN = 2             # good records of a batch that is not whole: none of them counts
    SPAN_DAMAGED = 3            # no good record begins in it
    SPAN_TORN = 4               # the end of the log, never known to be on the disk; the walk stays before it


cdef struct Span:
    uint64_t start
    uint64_t end
    bint framed                 # of damage: the lengths of the bad records lead exactly to its end


cdef class Walk:
    cdef ByteBuf window             # bytes of the segment from window_at on
    cdef uint64_t window_at
    cdef size_t chunk               # bytes read at a time
    cdef bint lenient               # bytes that cannot be read are taken for zeros
    cdef bint unreadable            # there were such bytes
    cdef uint64_t offset            # where the next record is looked for
    cdef uint64_t batch             # [batch, offset): good records that are followed by more of their batch
    cdef bint looked                # for marks ahead, in this segment
    cdef uint64_t previous          # version of the last good record of this segment; 0: there was none
    cdef uint64_t newest            # highest version seen, or known from the checkpoint
    cdef uint64_t latest_version    # version below which plausible ones lie
    cdef uint32_t synced_id         # position up to which marks and sealed segments prove the log synced
    cdef uint64_t synced_offset


# Begin at byte `start` of a segment; what was read before is forgotten.
cdef void walk_begin(Walk w, uint64_t start) noexcept

# The next span up to data_end, and its kind. `last`: it is the segment whose tail may be torn. Raises StorageError,
# MemoryError.
cdef SpanKind walk_step(Walk w, Segment s, uint64_t data_end, bint last, Span* span) except? SPAN_END

# The bad records of a damaged span, as far as they can be told apart: a list of (offset, length, key or None, version,
# is the key certain). Raises StorageError, MemoryError.
cdef list walk_lost(Walk w, Segment s, const Span* span)

# At least n bytes of the segment from `offset` on, or all up to `end`. Raises StorageError, MemoryError.
cdef const uint8_t* walk_fetch(Walk w, Segment s, uint64_t offset, size_t n, uint64_t end) except NULL

# Where the last byte that is not zero ends; SEGMENT_HEADER when all of the records' part is zero. Raises StorageError.
cdef uint64_t walk_data_end(Walk w, Segment s) except 0

# Does the segment seem to hold any good record? Asked of a Walk made for it. Raises StorageError.
cdef bint walk_finds_record(Walk w, Segment s) except -1

# The seed of the segment's records when its header cannot be believed: one of `hints` (set of int) that a record
# confirms, or one that two records in a row confirm. -1: there are none. Raises StorageError, MemoryError.
cdef int64_t walk_find_seed(Walk w, Segment s, set hints) except? -2

# The log was on the disk up to this position.
cdef void walk_note_synced(Walk w, uint32_t id, uint64_t offset) noexcept


# The version below which plausible ones lie. A clock that was ahead when the records around were written is as plausible
# as the one of today.
cdef inline uint64_t walk_latest(Walk w) noexcept:
    return max(w.latest_version, w.newest + (<uint64_t>86400000 << 20))
