"""Long work in portions: a thread that gives way pauses between them, so that another one gets its processor.

    give_way()      once, by the thread itself
    pace(1)         for every record that is looked at: returns at once, but every fifth of a millisecond

Low priority alone does not do it. A scheduler that owes such a thread time gives it a whole slice, during which one that has
become ready waits: with Linux up to two ticks, 8 ms. docs/design.md ("Threads").
"""

# Work of about so many records has been done: perhaps it is time to pause. The GIL must not be held.
cdef void pace(size_t records) noexcept nogil
