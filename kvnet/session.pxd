"""One client's state: bytes in, replies out. Knows no socket.

    feed(bytes) -> frame -> command -> reply    ...    flush     then take() -> bytes that may go out
                   \\_________ a run _________/

Every run ends with a flush, so that a reply that may go out is about records that are in the kernel. When the flush fails,
the store is as it was before the run's unflushed commands; their replies are dropped and they are executed again with
writes refused. Sessions that receive at the same time share the flush, and its failure. With `hold`, replies from the first
write on wait in `out` until release() or fail() is called: that is how a sync is waited for.

        0          ready                                          len
    out | may go out | held for a sync ... | kept: part of a list ... |
"""
from libc.stdint cimport uint32_t, uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.types cimport Slice, uint8_t
from kvnet.commands.text cimport TEXT_COMMANDS
from kvnet.context cimport Context
from kvnet.metrics cimport OUTCOMES, Metrics
from kvnet.residency cimport Residency
from kvnet.textwire cimport Framer


cdef enum:
    PLACES = 64


# What has become of a run's unflushed commands.
cdef enum Fate:
    OPEN
    DONE                        # flushed
    UNDONE                      # taken back: a flush failed


# A moment to go back to: all commands before it are in the kernel or changed nothing.
cdef struct Moment:
    size_t position             # in the input
    size_t reply                # in out
    size_t writes               # in `writes`
    Framer framer
    uint32_t rows               # a bit for each row of counts that is not all zero
    uint32_t counts[TEXT_COMMANDS + 1][OUTCOMES]


cdef class Session:
    cdef Context context
    cdef Metrics metrics
    cdef Residency residency
    cdef int row                # of the first command in the metrics
    cdef ByteBuf input          # what is not executed yet
    cdef ByteBuf writes         # of size_t: where in out the replies of successful writes begin
    cdef Moment now
    cdef Moment safe
    cdef size_t ready
    cdef size_t kept            # bytes at the end of out that are no whole part of a list yet
    cdef uint64_t taken         # bytes of replies that have gone out of `out`
    cdef bint stopped           # the last run ended before its input: enough replies wait, or its time was over
    cdef size_t ahead           # in the input: up to where the store knows what is coming
    cdef int waited             # jobs that the next command has waited for
    cdef bint waits             # for the disk: context.job was found to
    cdef uint32_t steps         # commands since the clock was looked at
    cdef double started         # when the run began
    cdef Slice chunk            # what is executed, but for session_settle(); or NULL
    cdef Fate fate
    cdef object refusal         # why they were taken back
    cdef double deadline        # when this run gives way to other clients
    cdef bint ended             # the client will send no more
    cdef double held_since
    cdef uint32_t held_counts[TEXT_COMMANDS + 1]
    cdef public bint hold       # replies to writes wait for release()


# Where to receive input, and how much there is room for: *n bytes. PLACES sessions may receive at a time, each in a place
# of its own, counted from 0; it is good until the next call of this session, and of any other with this place.
cdef uint8_t* session_room(Session s, int place, size_t* n) except NULL

# The key of the first command in the n bytes that have been received there; empty when there is none. A hint.
cdef Slice session_coming(Session s, int place, size_t n) noexcept

# n bytes have been received there: execute what they complete. True: a flush is shared with those that are still to receive.
# Then session_settle() has to follow before anything else is done with the session or the place; the first such call flushes
# for all.
cdef bint session_received(Session s, int place, size_t n) except -1
cdef int session_settle(Session s) except -1

# Do replies wait for a sync?
cdef inline bint session_held(Session s) noexcept:
    return s.writes.len > 0

# The position behind the last reply, in bytes since the session began.
cdef inline uint64_t session_mark(Session s) noexcept:
    return s.taken + s.context.out.len

# A sync covers all replies up to `mark`: they may go out, and what is held behind them without a write, too.
cdef int session_release(Session s, uint64_t mark) except -1

# The replies that may go out. The bytes live until the next call of this session.
cdef Slice session_ready(Session s) noexcept

# They have gone out, all of them.
cdef int session_sent(Session s) except -1
