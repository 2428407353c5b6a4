"""Open a directory: names, manifest, lock, replay, torn tail, quarantine. docs/format.md ("Opening").

Nothing is changed before names, manifest and format are found good and the lock is held. A directory that is refused is
left as it was; a new one that cannot be finished is taken away again.
"""
from kvcore.expiry cimport Deadlines
from kvcore.files cimport Files
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log
from libc.stdint cimport uint64_t


cdef class Recovered:
    cdef Log log
    cdef HashIndex index
    cdef Deadlines deadlines
    cdef int lock_fd                # the log's, once all is well
    cdef dict report                # what Store.recovery shows


# Raises StorageError, CorruptionError, LockedError, MemoryError.
cdef Recovered recover(Files files, bytes path, uint64_t segment_size, object executor)
