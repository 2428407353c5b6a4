"""Framing and parsing of the text protocol. docs/protocol.md. No I/O, no store; nothing is copied.

A command ends at "\\r"; a "\\n" right behind that is skipped. An over-long command is reported once and dropped up to its
end. Any bytes are accepted; no state grows with them.
"""
from kvcore.types cimport Slice, uint8_t


cdef enum Frame:
    FRAME_MORE = 0              # no whole command yet
    FRAME_LINE = 1
    FRAME_TOO_LONG = 2          # answer an error; the rest up to the next "\r" will be dropped
    FRAME_SKIPPED = 3           # bytes that are no command were passed over: look again

cdef enum Shape:
    SHAPE_NONE = 0              # what follows the command word
    SHAPE_KEY = 1
    SHAPE_KEY_VALUE = 2


cdef struct Framer:
    size_t limit                # bytes of a longest command that writes
    size_t scanned              # bytes of the unfinished command known to hold no "\r"
    bint dropping               # inside an over-long command
    bint after_return           # the byte before was the "\r" of a command


cdef struct Arguments:
    Slice key
    Slice value


# The longest command of a store that takes values of so many bytes.
cdef size_t text_limit(size_t value_limit) noexcept

# Find the next command at the front of the n bytes at data. *used: how many bytes are done with, whatever the result;
# they must not be passed again. With FRAME_LINE, *line is the command without its end.
cdef Frame text_frame(Framer* f, const uint8_t* data, size_t n, size_t* used, Slice* line) noexcept nogil

# Split what follows the command word (whose length is `word`) as its shape says. 0, or -1 when it does not fit.
cdef int text_arguments(Slice line, size_t word, Shape shape, Arguments* a) noexcept nogil

# Length of the command word at the front of a line.
cdef size_t text_word(Slice line) noexcept nogil

# What looks like the key of a command, for a hint of what is needed next; empty when there is none.
cdef Slice text_key(Slice line) noexcept nogil
