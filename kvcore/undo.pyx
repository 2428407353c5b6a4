from kvcore.bytebuf cimport bytebuf_clear
from kvcore.hashindex cimport Entry, index_first, index_insert, index_next, index_remove
from kvcore.log cimport log_drop, log_unbury


cdef enum:
    NOTES_KEPT = 1 << 20                # bytes of room that the notes keep between flushes


cdef void undo_forget(ByteBuf notes) noexcept:
    bytebuf_clear(notes, NOTES_KEPT)


cdef int undo_all(ByteBuf notes, Log log, HashIndex index) except -1:
    try:
        take_back(notes, log, index)
    except MemoryError:
        # Half taken back: the index no longer says what the log says. No formatting, there is no memory for it.
        log.broken = log.broken or "a failed write could not be taken back: no memory; open the store again"
        raise
    finally:
        log_drop(log)
        undo_forget(notes)
    return 0


cdef int take_back(ByteBuf notes, Log log, HashIndex index) except -1:
    cdef Change* change = <Change*>notes.data
    cdef size_t i = notes.len // sizeof(Change)
    cdef Entry* entry
    while i > 0:
        i -= 1
        if change[i].before.length:
            log_unbury(log, change[i].before)
        if change[i].after.length == 0:
            index_insert(index, change[i].hash, change[i].before)
            continue
        entry = index_first(index, change[i].hash)
        while entry.at.segment != change[i].after.segment or entry.at.offset != change[i].after.offset:
            entry = index_next(index, change[i].hash, entry)
        if change[i].before.length:
            entry.at = change[i].before
        else:
            index_remove(index, change[i].hash, entry)
    return 0
