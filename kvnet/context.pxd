"""What a command sees of the connection it runs for: the store, the replies, the dialect, a list reply under way.

Ownership: `out` is the session's reply buffer; commands append to it. Slices of a command live while it runs.
"""
from kvcore.bytebuf cimport ByteBuf
from kvcore.store cimport Store
from kvcore.types cimport Slice


cdef enum Dialect:
    CHALLENGE = 0
    ESCABELO = 1
    LF = 2


cdef class Context:
    cdef Store store
    cdef object metrics             # for commands that show counters
    cdef ByteBuf out
    cdef Dialect dialect
    cdef str refusing               # why writes are refused in this chunk, or None
    cdef bint doubt                 # ask before reading whether that waits for the disk
    cdef object job                 # reads from the disk what comes next, or None
    cdef object cursor              # a list reply under way, or None
    cdef bint list_values           # it lists values, not keys
    cdef bint list_begun            # something of it is in out already
