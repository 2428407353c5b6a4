"""Replay the records of segments into an index, past damage. docs/format.md ("Opening", 3 to 5).

Reads through the descriptor, not the mapping: an unreadable page is then an ordinary error.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.expiry cimport Deadlines
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log
from kvcore.segment cimport Segment


cdef class Replay:
    cdef Log log
    cdef HashIndex index
    cdef Deadlines deadlines
    cdef ByteBuf window             # bytes of the segment from window_at on
    cdef uint64_t window_at
    cdef ByteBuf scratch
    cdef ByteBuf tombstones         # of Grave: entries to take out when all is read
    cdef set lost                   # (slot, offset) of damaged records that the index names
    cdef uint64_t newest            # highest version seen, or known from the checkpoint
    cdef uint64_t latest_version    # version below which plausible ones lie
    cdef uint32_t synced_id         # position up to which marks and sealed segments prove the log synced
    cdef uint64_t synced_offset
    cdef bint moving                # copies made by compaction, over a checkpoint: they replace their originals only
    cdef uint64_t records
    cdef uint64_t torn_bytes
    cdef uint64_t damaged_bytes
    cdef uint64_t damaged_ranges
    cdef list messages              # of str, one line each


# Where the last byte that is not zero ends; SEGMENT_HEADER when all of the records' part is zero. Raises StorageError.
cdef uint64_t replay_data_end(Replay p, Segment s) except 0

# Does the segment seem to hold any good record? Asked of a Replay made for it. Raises StorageError.
cdef bint replay_finds_record(Replay p, Segment s) except -1

# Put the records of the segment in `slot`, from byte `start` to data_end, into the index and set its `flushed`. `last`:
# it is the one whose tail may be torn. Raises StorageError, MemoryError.
cdef int replay_segment(Replay p, uint32_t slot, uint64_t start, uint64_t data_end, bint last) except -1

# Take the tombstones out of the index: from now on a deleted key is simply not there.
cdef int replay_finish(Replay p) except -1
