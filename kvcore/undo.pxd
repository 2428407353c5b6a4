"""What to take back when the buffer cannot be written: one note for each change of the index since the last flush."""
from libc.stdint cimport uint64_t

from kvcore.bytebuf cimport ByteBuf, bytebuf_reserve
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log
from kvcore.types cimport Location


cdef struct Change:
    uint64_t hash
    Location before
    Location after


# Make room for one more note. Raises MemoryError.
cdef inline int undo_reserve(ByteBuf notes) except -1:
    bytebuf_reserve(notes, sizeof(Change))
    return 0


# The entry of `hash` that was at `before` is at `after` now. An empty Location (length 0) means "no entry".
# undo_reserve has been called.
cdef inline void undo_note(ByteBuf notes, uint64_t hash, Location before, Location after) noexcept:
    cdef Change* change = <Change*>(notes.data + notes.len)
    change.hash = hash
    change.before = before
    change.after = after
    notes.len += sizeof(Change)


# The changes noted stand: forget the notes.
cdef void undo_forget(ByteBuf notes) noexcept

# Give every key back the record it had before, and empty the log's buffer. Raises MemoryError; the log is broken then.
cdef int undo_all(ByteBuf notes, Log log, HashIndex index) except -1
