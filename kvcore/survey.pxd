"""A data directory read as it was found: what checking, salvaging and the operations log have in common.

Nothing is written, made or locked; the directory may be in any state, or in use. What is wrong is gathered in
Survey.damage; what is only worth knowing, in Survey.notes.
"""
from libc.stdint cimport uint32_t, uint64_t

from kvcore.expiry cimport Deadlines
from kvcore.files cimport Files
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log
from kvcore.record cimport Record
from kvcore.replay cimport Replay
from kvcore.segment cimport Segment
from kvcore.walk cimport Walk


cdef class Survey:
    cdef Files files
    cdef readonly str path
    cdef readonly list damage       # of Damage
    cdef readonly list notes        # of str
    cdef readonly bint listed       # the manifest says which segments there are
    cdef bytes content              # of the manifest, or None
    cdef dict lines                 # of the manifest, by id
    cdef dict sizes                 # of the segment files, by name
    cdef Log log
    cdef HashIndex index
    cdef Deadlines deadlines
    cdef Replay replay


# The live records of a survey that was read, in the order of the log.
cdef class Live:
    cdef Survey survey
    cdef Walk walk
    cdef object plan
    cdef Segment segment
    cdef uint64_t data_end
    cdef bint last
    cdef uint64_t at                # [at, end): good records still to come of the span under way
    cdef uint64_t end


# The next one: 1, and r points to it until the next call. 0 at the end. Raises StorageError, MemoryError.
cdef bint live_next(Live live, Record* r) except -1
