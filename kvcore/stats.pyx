from libc.stdint cimport uint64_t

from kvcore.compaction cimport Compaction
from kvcore.due cimport due_urgently
from kvcore.expiry cimport Deadlines
from kvcore.hashindex cimport HashIndex, index_bytes
from kvcore.log cimport Log
from kvcore.segment cimport SEGMENT_HEADER, Segment


def collect_stats(Log log not None, HashIndex index not None, Deadlines deadlines not None, Compaction compaction not None):
    """The counts, sizes and times (dict of str to int or float) that the parts of a store have. In bytes and seconds."""
    cdef Segment segment
    cdef uint64_t used = 0, dead = 0, allocated = 0, count = 0
    for segment in log.segments:
        if segment is None:
            continue
        count += 1
        used += segment.flushed - SEGMENT_HEADER
        dead += segment.dead
        allocated += max(segment.allocated, segment.flushed)
    used += log.buf.len
    dead += log.buf_dead
    return {
        "keys": index.count, "segments": count, "live_bytes": used - dead, "dead_bytes": dead, "disk_bytes": allocated,
        "index_bytes": index_bytes(index), "deadline_bytes": deadlines.heap.len, "written_bytes": log.flushed_total,
        "compactions": compaction.runs, "compaction_read_bytes": compaction.read_bytes,
        "compaction_written_bytes": compaction.written_bytes, "compaction_reclaimed_bytes": compaction.reclaimed_bytes,
        "compaction_running": compaction.running, "compaction_behind": due_urgently(log),
        "compaction_seconds": compaction.seconds,
        "compressed_from_bytes": compaction.packed_bytes, "compressed_to_bytes": compaction.frame_bytes,
        "checkpoints": log.checkpoints, "checkpoint_bytes": log.checkpoint_bytes, "checkpoint_at": log.checkpoint_at / 1000,
        "replay_bytes": log.flushed_total - log.checkpoint_total}
