"""The commands of the text protocol, as a table that the session dispatches on and docs and tests read."""
from kvcore.types cimport Slice
from kvnet.context cimport Context
from kvnet.metrics cimport OUTCOME_ERROR, Outcome
from kvnet.textwire cimport Arguments, Shape


cdef enum:
    TEXT_COMMANDS = 6
    FLAG_WRITES = 1             # changes the store: its success waits for durability
    FLAG_LISTS = 2              # what is new since the last list may have to be sorted first


cdef struct TextCommand:
    const char* name
    size_t name_len
    Shape shape
    int flags
    # Append the reply to c.out. Raises KVError or MemoryError; the session turns it into an error reply.
    Outcome (*run)(Context c, const Arguments* a) except? OUTCOME_ERROR
    # Have c.job do, too, what `run` would take long for: with `doubt` read from the disk; sort. It stays None when that is
    # nothing. NULL: never anything.
    int (*warm)(Context c, const Arguments* a, bint doubt) except -1


cdef TextCommand[TEXT_COMMANDS] text_commands

# The row of the command whose name is `word`, or -1.
cdef int text_find(Slice word) noexcept nogil

# Append an error reply.
cdef int text_fail(Context c, object reason) except -1

# Append more items of the list under way until the reply holds `room` bytes, the clock has passed `until`, or the next one
# has to wait for c.job. 1 when the list is at its end.
cdef int text_list_more(Context c, size_t room, double until) except -1
