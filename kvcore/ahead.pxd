"""Disk space taken ahead of the log, so that most syncs need not also make the file's new length durable.

     flushed            | end of the page    allocated
      | records to come | zeros on the disk ... | <- zero, while a group is answered

Where a sync follows each flush the space is also written, with zeros: of blocks that are only reserved a file system has to
note that they are in use when a sync first covers them. The zeros go to the disk past the kernel's memory of the file and
while nobody waits for them, so that no sync has to write them. docs/design.md ("Replies and durability").

Thread: the owner's.
"""
from libc.stdint cimport uint64_t

from kvcore.files cimport Files
from kvcore.segment cimport Segment


cdef enum:
    PAGE = 4096                     # what direct writes are aligned to, and the kernel reads at a time


cdef class Ahead:
    cdef Files files
    cdef bint refused               # the file system cannot take space
    cdef bint zeros                 # it can have zeros written without waiting, as far as is known
    cdef Segment segment            # the one that has been written to, and its descriptor for that; -1: none
    cdef int fd
    cdef uint64_t queue             # see FileTable.zero
    cdef bint under_way             # zeros are, from `start` on
    cdef uint64_t start


cdef Ahead ahead_new(Files files)

# Take space for a flush up to `end` and some more: a part of `total`, the bytes ever written; but not beyond `most`.
cdef void ahead_reserve(Ahead a, Segment s, uint64_t end, uint64_t total, uint64_t most) noexcept

# Begin to write zeros behind what there is, if that is getting short. After a sync of so many bytes: if they were more than
# what is taken at a time, that is of no use for the next.
cdef void ahead_zero(Ahead a, Segment s, uint64_t synced, uint64_t total, uint64_t most) noexcept

# Make sure that a flush up to `end` meets no zeros that are under way. Returns where it has to end, itself with less than a
# PAGE of zeros: of a page that is written in part the rest would have to be read from the disk before.
cdef uint64_t ahead_meet(Ahead a, Segment s, uint64_t end) noexcept

# Wait for what is under way, and give the descriptor back. The log's duty, also when it is only freed.
cdef void ahead_close(Ahead a) noexcept
