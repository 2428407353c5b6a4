"""Deadlines: which keys expire when. 16 bytes of memory for each record with a deadline, nothing for others.

A binary heap of (deadline, hash), earliest first. Entries are never taken out early: a record that was replaced or
deleted leaves a stale one, which is found out when it is due, or when the heap has doubled and is gone through.
A key that is past its deadline is invisible from that moment on, whether it has been swept or not: readers compare the
record's deadline themselves. Sweeping only gives the index entry back; the record in the log then hides older ones, as
a tombstone does.
"""
from libc.stdint cimport uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.hashindex cimport HashIndex
from kvcore.log cimport Log
from kvcore.types cimport Location


cdef struct Deadline:
    uint64_t at                 # unix milliseconds
    uint64_t hash


cdef class Deadlines:
    cdef ByteBuf heap           # of Deadline
    cdef size_t check_at        # number of entries at which stale ones are looked for


# Room for one more, so that deadlines_add cannot fail. Raises MemoryError.
cdef int deadlines_reserve(Deadlines d) except -1
cdef void deadlines_add(Deadlines d, uint64_t at, uint64_t hash) noexcept

# Drop stale entries, when there may be many.
cdef int deadlines_tidy(Deadlines d, HashIndex index, Log log) except -1

# Take keys past their deadline out of the index, at most `limit` heap entries at a time; the log's buffer must be empty.
# Returns how many entries it went through: fewer than `limit` when nothing more is due.
cdef size_t deadlines_sweep(Deadlines d, HashIndex index, Log log, size_t limit) noexcept

# The deadline of the record at `at`, in unix milliseconds; 0: none, or it cannot be read.
cdef uint64_t deadline_of(Log log, Location at) noexcept
