"""Sorted orders: the records of a stretch of a segment, ascending by key. docs/format.md ("Order").

    segment:   | header | records ..................................... | new records |
    runs:               [ run 0: 490,000 offsets ][ run 1: 60,000 ][ run 2: 900 ]

An order holds u32 offsets only; keys are read from the segment. A sealed segment has one, from its .ord file or built
and saved; one that is still written has a few runs, made when somebody scans: what is new is sorted, and when the runs are
too many, two neighbours are merged. A list of runs is never changed, only replaced.

Thread: order_build, order_make and order_save may run on any thread while nobody writes to the stretch; the rest is the
owner's.
"""
from libc.stdint cimport uint32_t, uint64_t

from kvcore.bytebuf cimport ByteBuf
from kvcore.files cimport Files
from kvcore.segment cimport Segment
from kvcore.types cimport Slice, uint8_t


cdef class Order:
    cdef Files files                # for the mapping; not the segment, which holds its orders
    cdef ByteBuf owned              # the offsets, or None when they are mapped
    cdef const uint8_t* map         # of the .ord file
    cdef size_t mapped
    cdef readonly size_t count


# Sort the records in [start, end) of the segment. None when they do not follow each other without a gap (damage).
# Raises MemoryError.
cdef Order order_build(Segment s, uint64_t start, uint64_t end)

# Sort the records at these offsets (ByteBuf of u32), which is emptied.
cdef Order order_of(Segment s, ByteBuf offsets)

# Where what lacks an order begins. 0: it is sealed and lacks the one final order.
cdef uint64_t order_start(Segment s) noexcept

# The orders of the segment up to `end`, of which it has `runs` (or None) up to `start`, as order_start says. None when
# only the index knows where its records stand. Raises MemoryError.
cdef list order_make(Segment s, list runs, uint64_t start, uint64_t end)

# Take them as the segment's own.
cdef void order_settle(Segment s, list runs, uint64_t end) noexcept

# Those up to the flushed end of the segment: made now, as far as it lacks them, and taken.
cdef list order_runs(Segment s)

# The order of a sealed segment from its file; None when that is missing or does not match.
cdef Order order_load(Segment s)

# Write the .ord file. Raises StorageError.
cdef int order_save(Segment s, Order o) except -1

# Copy the offsets [i, i + n) out; the caller knows that they exist. 0, or -1 when they cannot be read.
cdef int order_offsets(Order o, size_t i, size_t n, uint32_t* dst) noexcept nogil

# The first place whose key is not below `key`. Keys that cannot be read count as above.
cdef size_t order_seek(Order o, Segment s, Slice key) noexcept nogil

cdef bytes order_path(Segment s)
