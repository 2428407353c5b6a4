"""One file or directory of kvcore.crashfs: what the kernel shows of it, what the disk has, and the changes in between.

A file's content is a stretch of address space that later writes appear in: a mapping is a pointer to it.
Thread: any; with the GIL.
"""
from libc.stdint cimport uint64_t

from kvcore.types cimport uint8_t


cdef enum:
    LARGEST = 1 << 27               # bytes of a file: the address space that each one has


cdef class Node:
    cdef uint8_t* data              # NULL: a directory
    cdef uint64_t size
    cdef bytes durable              # what the disk has
    cdef list changes               # since then: (offset, bytes), or (size, None): cut
    cdef int mapped                 # mappings
    cdef int holder                 # descriptor that holds the lock; 0: none
    cdef bint failed                # a sync failed since the file was last empty


cdef Node node_directory()

# A file with this content in the kernel. Raises MemoryError.
cdef Node node_file(const uint8_t* content, size_t n)

# A copy of the node, the same for each `node` that is in `copies`. Raises MemoryError.
cdef Node node_copy(Node node, dict copies)

# Cut the file, or make it grow by zeros.
cdef int node_resize(Node node, uint64_t size) except -1

# A content after these changes of it.
cdef bytes node_changed(bytes content, list changes)

# Changes split into the parts that can reach the disk each by itself: the size, and the data between multiples of `grain`.
cdef list node_parts(list changes, int grain)
