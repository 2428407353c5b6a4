"""Memory for tables that grow one at a time, all of about the same size: from regions of huge pages.

    region:    | given back | table | table | given back | table | not handed out yet |     2 MiB and more

A search in a large index begins at a random place, and on 4 KiB pages the processor then first has to look for the page: a
good part of the time of a `get` (docs/design.md). One table is smaller than a huge page, so tables stand beside each other.
Space is handed out from the front of the newest region, once; what is given back goes to the kernel at once, and a
region goes when its last table does: tables made at about the same time are outgrown at about the same time, too.

Where there are no huge pages, and for small tables, these are ordinary ones.
Thread: the owner's alone. None of these raises.
"""
from kvcore.types cimport uint8_t


cdef struct Region:
    uint8_t* start
    size_t size
    size_t used                 # bytes handed out
    size_t live                 # of these not given back
    size_t unit                 # bytes of a page
    Region* older


# n bytes of zeros, aligned to a cache line; NULL: there is no memory. regions: the newest one; NULL in the beginning.
cdef void* regions_take(Region** regions, size_t n) noexcept nogil

# Give back n bytes that regions_take gave.
cdef void regions_give(Region** regions, void* memory, size_t n) noexcept nogil

# Bytes of all regions that may be in memory: those handed out and not given back, page by page.
cdef size_t regions_bytes(const Region* regions) noexcept nogil
