"""Commands and replies of the two protocols, as a client sees them. No I/O; nothing is allocated.

Replies are read as they come, in pieces of any size: a Reply holds what is known of the one under way. Bytes of values are
compared where they lie, never kept.
"""
from kvcore.types cimport Slice, uint8_t

from kvnet.bench.workload cimport Workload, uint64_t


cdef enum Protocol:
    TEXT = 0                    # docs/protocol.md
    RESP = 1                    # version 2, as redis-server speaks it to a client that did not say HELLO

cdef enum Operation:
    WRITE = 0
    READ = 1
    OPERATIONS = 2

cdef enum Outcome:
    MORE = 0                    # the reply is not complete
    GOOD = 1
    MISS = 2                    # no such key. The text protocol says no more than "error"
    REFUSED = 3                 # an error; its text is in head
    WRONG = 4                   # another value than was written; its beginning is in head
    FOREIGN = 5                 # no reply of this protocol; what came is in head. The connection is of no use any more

cdef enum:
    HEAD = 120                  # bytes kept of a line, or of a wrong value
    COMMAND_ROOM = 96           # what a command takes beside key and value, at most

cdef enum Stage:
    LINE = 0
    VALUE = 1                   # RESP: the bytes behind "$<length>\r\n"
    RETURN = 2                  # RESP: the "\r" behind them
    FEED = 3                    # RESP: the "\n"


cdef struct Reply:
    Stage stage
    bint differs                # from what was expected; its first bytes are in head then
    uint64_t seen               # bytes of the value (text: of the line) that have come
    uint64_t length             # RESP: of the value, as declared
    size_t kept                 # bytes in head
    uint8_t[HEAD] head


cdef inline void reply_reset(Reply* r) noexcept nogil:
    r.stage = LINE
    r.differs = False
    r.seen = r.length = r.kept = 0


# Write a command; return its end. There is room for COMMAND_ROOM bytes beside the key, and the value of a write.
cdef uint8_t* command_put(
    Protocol protocol, Operation operation, Workload w, uint64_t number, uint8_t* out) noexcept nogil

# Go on with the reply `r` to an operation with the n bytes at data. *used: how many of them belong to it. For a READ,
# `expected` is the value. Unless it was MORE, reply_reset() makes r ready for the next one.
cdef Outcome reply_take(
    Protocol protocol, Operation operation, Slice expected, Reply* r, const uint8_t* data, size_t n, size_t* used
) noexcept nogil
