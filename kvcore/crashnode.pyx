from libc.string cimport memcpy, memset


cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t n, int protection, int flags, int fd, long long offset)
    int munmap(void* address, size_t n)
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    enum: MAP_NORESERVE
    void* MAP_FAILED


cdef class Node:
    def __dealloc__(self):
        if self.data != NULL:
            munmap(self.data, LARGEST)


cdef Node node_directory():
    cdef Node node = Node()
    node.durable = b""
    node.changes = []
    return node


cdef Node node_file(const uint8_t* content, size_t n):
    cdef Node node = node_directory()
    cdef void* address = mmap(
        NULL, LARGEST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if address == MAP_FAILED:
        raise MemoryError()
    node.data = <uint8_t*>address
    node.size = n
    if n:
        memcpy(node.data, content, n)
    return node


cdef bytes node_changed(bytes content, list changes):
    cdef bytearray result = bytearray(content)
    for at, data in changes:
        if data is None:
            if at < len(result):
                del result[at:]
            else:
                result.extend(bytes(at - len(result)))
        else:
            if at > len(result):
                result.extend(bytes(at - len(result)))
            result[at:at + len(data)] = data
    return bytes(result)


cdef list node_parts(list changes, int grain):
    cdef list parts = []
    for change in changes:
        at, data = change
        if not data:
            parts.append(change)
            continue
        end = at + len(data)
        parts.append((end, b""))
        cuts = [at, *range(at - at % grain + grain, end, grain), end]
        for i in range(len(cuts) - 1):
            parts.append((cuts[i], data[cuts[i] - at:cuts[i + 1] - at]))
    return parts


cdef int node_resize(Node node, uint64_t size) except -1:
    if size < node.size:
        memset(node.data + size, 0, node.size - size)
    # An empty write grows a file as a size does, but never cuts it when changes before it are lost.
    node.changes.append((size, b"" if size > node.size else None))
    node.size = size
    node.failed &= size > 0
    return 0


cdef Node node_copy(Node node, dict copies):
    cdef Node copy = copies.get(node)
    if copy is None and node is not None:
        copy = node_directory() if node.data == NULL else node_file(node.data, node.size)
        copy.durable = node.durable
        copy.changes = list(node.changes)
        copies[node] = copy
    return copy
