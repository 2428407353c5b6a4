"""Compaction: copy what is alive out of segments with many dead bytes, then drop them.
docs/format.md ("Compaction on disk").

    sources  [x.x..x][..x.x.]  --read, verify-->  live records  --compress, write-->  [xxxxxx]  output
                                                        |
                                    the index moves from the copy's original to the copy

It runs as a generator of Jobs: disk and checksums are worked by run() in a worker, the index is changed by finish() on the
owner's thread, about a millisecond at a time. Whoever drives it decides the pace, and flushes the log's buffer before each
finish(): an undo note must not name a place that is being moved.
"""
from libc.stdint cimport uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.expiry cimport Deadlines
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log
from kvcore.segment cimport Segment


cdef class Compaction:
    cdef readonly uint64_t runs             # since opening
    cdef readonly uint64_t read_bytes
    cdef readonly uint64_t written_bytes
    cdef readonly uint64_t reclaimed_bytes
    cdef readonly uint64_t packed_bytes     # compressed values: what they were, and what they are
    cdef readonly uint64_t frame_bytes
    cdef readonly double seconds            # of the runs that have ended
    cdef ByteBuf chunk                      # room for the next job: of what it reads, and of what it writes
    cdef ByteBuf encoded
    cdef bint running                       # one is under way
    cdef bint off                           # do not compress
    cdef bint unlisted                      # there are outputs that the published manifest does not list
    cdef uint64_t stuck                     # bytes of tombstones that the last run had to keep


# The segments that can be compacted.
cdef list compactable(Log log)

# The outputs of a run that was left.
cdef list unfinished(Log log)

# Does nothing in it count any more, nor hide anything older? Then it need not be read.
cdef bint is_useless(Segment s) noexcept
