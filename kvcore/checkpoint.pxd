"""Checkpoints: the image of the index in index.ckpt, written a partition at a time, loaded when it can be proven right.
docs/format.md ("Checkpoint").

An image is fuzzy: partitions are copied while the store goes on. It says up to where each segment was written when the
copying began ("covered"); what came later is replayed over it, and replaying what a partition holds already changes
nothing. It is published only when the log is synced beyond everything it can refer to.
"""
from libc.stdint cimport uint64_t

from kvcore.expiry cimport Deadlines
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log


# Is so much log newer than the last checkpoint that replaying it would take long?
cdef bint checkpoint_due(Log log, HashIndex index) noexcept

# Remove the checkpoint for good. False: it may come back.
cdef bint checkpoint_drop(Log log) except -1

# Up to where the log was on the disk as index.ckpt says, whether or not the rest of it can be believed: {segment id:
# bytes}, also of segments that are gone. Raises StorageError, MemoryError.
cdef dict checkpoint_covered(Log log)

# Fill the index and the deadlines from index.ckpt. Returns {segment id: covered bytes}, or None when there is none to be
# believed; index and deadlines are then to be thrown away. Raises StorageError, MemoryError.
cdef dict checkpoint_load(Log log, HashIndex index, Deadlines deadlines)
