"""Durability of replies: which wait for a sync, and who syncs when. docs/design.md ("Replies and durability").

    always     a chunk with writes waits; one flush and one fdatasync cover all that gathered meanwhile (group commit)
    everysec   nothing waits; a sync a second. When the last good one is too old, writes wait as above
    no         nothing waits, nobody syncs before the store closes

Thread: the reactor's alone.
"""
from libc.stdint cimport uint64_t

from kvnet.group cimport Group, Waiter


cdef class Commit:
    cdef public bint holding            # replies to writes have to wait. It is looked at before each chunk
    cdef public double typical          # seconds that a sync takes, a running mean
    cdef object store
    cdef object metrics
    cdef object reactor
    cdef object syncer
    cdef object soon
    cdef object ticks                   # LoopingCall of everysec
    cdef object idle                    # Deferred of stop(), while a sync is under way
    cdef Group group                    # who waits for the next sync
    cdef double started_at              # reactor's clock: when the last sync began, and the last good one
    cdef double good_at
    cdef bint always
    cdef bint scheduled                 # turn_over() will be called
    cdef bint syncing
    cdef object job                     # the sync under way, and who waits for it
    cdef Group served


# As the method wait().
cdef int commit_wait(Commit c, Waiter waiter, uint64_t mark) except -1
