"""Replay the records of segments into an index, past damage. docs/format.md ("Opening", 3 to 5)."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.expiry cimport Deadlines
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log
from kvcore.segment cimport Segment
from kvcore.walk cimport Walk


cdef class Replay(Walk):
    cdef Log log
    cdef HashIndex index
    cdef Deadlines deadlines
    cdef ByteBuf scratch
    cdef ByteBuf tombstones         # of Grave: entries to take out when all is read
    cdef dict lost                  # (slot, offset) of damaged records that the index names: key
    cdef bint moving                # copies made by compaction, over a checkpoint: they replace their originals only
    cdef uint64_t records
    cdef uint64_t bytes
    cdef uint64_t torn_bytes
    cdef uint64_t damaged_bytes
    cdef uint64_t damaged_ranges
    cdef list messages              # of str, one line each
    cdef list ranges                # of (path, start, end, what, keys), instead of messages and a quarantine; or None


# How to read the log, oldest first, sealed segments by the age of their records, then the open ones as they were written:
# a list of (slot, data_end, last). Raises StorageError.
cdef list replay_plan(Replay p)

# Put the records of the segment in `slot`, from byte `start` to data_end, into the index and set its `flushed`. `last`:
# it is the one whose tail may be torn. Raises StorageError, MemoryError.
cdef int replay_segment(Replay p, uint32_t slot, uint64_t start, uint64_t data_end, bint last) except -1

# A checkpoint covers this: {segment id: bytes}. It is published only when the log is synced beyond what it covers.
cdef int replay_note_covered(Replay p, dict covered) except -1

# Take the tombstones out of the index: from now on a deleted key is simply not there.
cdef int replay_finish(Replay p) except -1
