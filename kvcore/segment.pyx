import os

cimport cython
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy, memset
from posix.fcntl cimport O_CREAT, O_EXCL, O_RDONLY, O_RDWR

from kvcore.files cimport files_check, files_open, files_read, files_write
from kvcore.guard cimport guard_compare, guard_copy, guard_key_equal
from kvcore.record cimport RECORD_DEADLINE, RECORD_EXPIRES, RECORD_HEADER, Record, crc32c_of, record_decode
from kvcore.types cimport kv_prefetch

from kvcore.errors import CorruptionError


cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)


cdef enum:
    LINE = 64                   # bytes of a cache line
    PREFETCHED = 384            # bytes of a record that are loaded ahead: the processor goes on by itself
    PAGE = 4096                 # bytes of a page of memory, or a part of one

SEGMENT_LIMIT = 0xFFFFFFFF
cdef bytes MAGIC = b"kvseg\r\n\x1a"
segments_open = 0


@cython.no_gc_clear             # __dealloc__ needs the file table
cdef class Segment:
    """One segment file of a store. Made by the engine only."""

    def __cinit__(self):
        self.fd = -1
        self.slot = NO_SLOT
        if pthread_mutex_init(&self.lock, NULL) != 0:
            raise MemoryError

    def __dealloc__(self):
        global segments_open
        pthread_mutex_destroy(&self.lock)
        if self.files is None:
            return
        if self.fd >= 0:
            self.files.call.close(self.files.ctx, self.fd)
            segments_open -= 1
        if self.map != NULL:
            unmap(self, self.map, self.mapped)
        segment_close_window(self)


def open_count():
    """Descriptors and mappings of segments that are open in this process (int); 0 when every store is closed."""
    return segments_open


cdef bytes segment_name(uint32_t id):
    return b"%010d.seg" % id


cdef dict segment_entry(Segment s, bint sealed):
    if not sealed:
        return {"id": s.id, "state": "open"}
    return {"id": s.id, "state": "sealed", "bytes": s.flushed, "records": s.records,
            "min_version": s.min_version, "max_version": s.max_version, "buried": s.buried}


cdef Segment new_segment(Files files, bytes directory, uint32_t id, int flags, str what):
    global segments_open
    cdef Segment s = Segment()
    s.files = files
    s.id = id
    s.path = os.path.join(directory, segment_name(id))
    s.fd = <int>files_check(files_open(files, s.path, flags), what, s.path)
    segments_open += 1
    s.min_version = <uint64_t>-1
    s.hides = True
    return s


cdef Segment segment_create(Files files, bytes directory, uint32_t id, bytes store_id, bint compacted):
    cdef Segment s = new_segment(files, directory, id, O_RDWR | O_CREAT | O_EXCL, "create")
    cdef int result
    cdef const char* directory_path = directory
    cdef uint8_t header[SEGMENT_HEADER]
    cdef uint32_t word = SEGMENT_FORMAT
    cdef uint64_t wide = id
    cdef const char* raw = store_id
    memset(header, 0, SEGMENT_HEADER)
    memcpy(header, <const char*>MAGIC, 8)
    memcpy(header + 8, &word, 4)
    header[12] = s.compacted = compacted
    s.hides = compacted
    memcpy(header + 16, &wide, 8)
    memcpy(header + 24, raw, 16)
    s.seed = int.from_bytes(os.urandom(4), "little")
    memcpy(header + 40, &s.seed, 4)
    word = <uint32_t>crc32c_of(header, SEGMENT_HEADER - 4, 0)
    memcpy(header + 60, &word, 4)
    with nogil:
        result = files_write(files, s.fd, header, SEGMENT_HEADER, 0)
        if result == 0:
            result = files.call.fdatasync(files.ctx, s.fd)
        if result == 0:
            result = files.call.fsync_dir(files.ctx, directory_path)
    if result < 0:
        files.call.unlink(files.ctx, s.path)
        files_check(result, "create", s.path)
    s.flushed = s.allocated = s.synced = SEGMENT_HEADER
    return s


cdef Segment segment_open_readonly(Files files, bytes directory, uint32_t id):
    cdef Segment s = new_segment(files, directory, id, O_RDONLY, "open")
    s.allocated = files_check(files.call.size(files.ctx, s.fd), "examine", s.path)
    return s


cdef bint segment_header_holds(const uint8_t* header) except -1:
    cdef uint32_t checksum
    memcpy(&checksum, header + SEGMENT_HEADER - 4, 4)
    return memcmp(header, <const char*>MAGIC, 8) == 0 and checksum == <uint32_t>crc32c_of(header, SEGMENT_HEADER - 4, 0)


cdef Segment segment_open(Files files, bytes directory, uint32_t id, bytes store_id):
    cdef Segment s = new_segment(files, directory, id, O_RDWR, "open")
    cdef uint8_t header[SEGMENT_HEADER]
    cdef uint64_t wide
    cdef str name = os.fsdecode(s.path)
    s.allocated = files_check(files.call.size(files.ctx, s.fd), "examine", s.path)
    cdef int64_t got = files_check(files_read(files, s.fd, header, SEGMENT_HEADER, 0), "read", s.path)
    if got < SEGMENT_HEADER:
        raise CorruptionError(
            f"segment {name} is cut short: {got} bytes; restore it, or salvage what is left into a new directory")
    if not segment_header_holds(header):
        raise CorruptionError(
            f"the header of segment {name} is damaged; restore it, or salvage what is left into a new directory")
    if s.allocated > SEGMENT_LIMIT:
        raise CorruptionError(f"segment {name} has {s.allocated} bytes, more than a segment can; restore it")
    memcpy(&wide, header + 16, 8)
    if header[24:40] != store_id or wide != id:
        raise CorruptionError(f"segment {name} belongs to another store; move it elsewhere")
    memcpy(&s.seed, header + 40, 4)
    s.compacted = header[12] & 1
    return s


cdef int segment_map(Segment s, uint64_t end) except -1:
    global segments_open
    cdef const uint8_t* address
    if end <= s.mapped:
        return 0
    address = s.files.call.map(s.files.ctx, s.fd, end)
    if address == NULL:
        files_check(-ENOMEM, "map", s.path)
    if s.map != NULL:
        unmap(s, s.map, s.mapped)
    s.map = address
    s.mapped = end
    segments_open += 1
    return 0


cdef bint segment_store(Segment s, const void* src, size_t n, uint64_t offset, size_t size) noexcept:
    global segments_open
    if s.window_size == 0:
        s.window_size = size
        s.window = s.files.call.window(s.files.ctx, s.fd, size)
        segments_open += s.window != NULL
    if s.window == NULL or offset + n > s.window_size:
        return False
    return s.files.call.store(s.files.ctx, s.fd, s.window, src, n, offset) == 0


cdef void segment_close_window(Segment s) noexcept:
    cdef uint8_t* window = s.window
    s.window = NULL
    if window != NULL:
        unmap(s, window, s.window_size)


# Milliseconds for a large mapping that was used: other threads go on meanwhile.
cdef void unmap(Segment s, const uint8_t* address, size_t n) noexcept:
    global segments_open
    segments_open -= 1
    with nogil:
        s.files.call.unmap(s.files.ctx, address, n)


cdef int segment_sync_quietly(Segment s) noexcept nogil:
    cdef int result
    # The kernel tells an open file of a failure once: of two threads that sync it only one hears of it.
    pthread_mutex_lock(&s.lock)
    if s.sync_failed == 0:
        s.sync_failed = min(s.files.call.fdatasync(s.files.ctx, s.fd), 0)
    result = s.sync_failed
    pthread_mutex_unlock(&s.lock)
    return result


cdef int segment_sync(Segment s) except -1:
    cdef int result
    with nogil:
        result = segment_sync_quietly(s)
    files_check(result, "sync", s.path)
    return 0


cdef void segment_seal(Segment s) noexcept:
    segment_close_window(s)
    s.sealed = True
    s.pins += 1
    segment_unpin(s)


cdef void segment_unpin(Segment s) noexcept:
    global segments_open
    s.pins -= 1
    if s.pins == 0 and s.sealed and s.fd >= 0:
        s.files.call.close(s.files.ctx, s.fd)
        s.fd = -1
        segments_open -= 1


cdef int segment_copy(Segment s, uint64_t offset, void* dst, size_t n) noexcept nogil:
    if offset > s.mapped or n > s.mapped - offset:
        return -1
    return guard_copy(dst, s.map + offset, n)


cdef void segment_prefetch(Segment s, uint64_t offset, size_t n) noexcept nogil:
    cdef size_t i = 0, most = min(n, <size_t>PREFETCHED)
    if offset + n <= s.mapped:
        while i < most:
            kv_prefetch(s.map + offset + i)
            i += LINE


cdef bint segment_resident(Segment s, uint64_t offset, size_t n) noexcept nogil:
    if offset > s.mapped or n > s.mapped - offset:
        return True
    return s.files.call.resident(s.files.ctx, s.map + offset, n) == 1


cdef void segment_fetch(Segment s, uint64_t offset, size_t n) noexcept nogil:
    if offset <= s.mapped and n <= s.mapped - offset:
        s.files.call.fetch(s.files.ctx, s.map + offset, n)


cdef void segment_await(Segment s, uint64_t offset, size_t n) noexcept nogil:
    cdef uint8_t byte
    cdef uint64_t at = offset
    # What cannot be read is told by who reads it next.
    while at < offset + n and segment_copy(s, at, &byte, 1) == 0:
        at = (at | (PAGE - 1)) + 1


cdef int segment_key_equal(Segment s, uint64_t offset, size_t size, const uint8_t* key, size_t n) noexcept nogil:
    if offset > s.mapped or size > s.mapped - offset:
        return -1
    return guard_key_equal(s.map + offset, size, key, n)


cdef int segment_header(Segment s, uint64_t offset, uint64_t end, Record* r) noexcept nogil:
    cdef uint8_t raw[RECORD_HEADER + RECORD_DEADLINE]
    cdef const uint8_t* record = s.map + offset
    if offset + RECORD_HEADER > min(end, <uint64_t>s.mapped):
        return -1
    if guard_copy(raw, record, RECORD_HEADER) < 0:
        return -1
    if raw[19] & RECORD_EXPIRES and (
            offset + sizeof(raw) > s.mapped or guard_copy(raw, record, sizeof(raw)) < 0):
        return -1
    if record_decode(raw, min(end, <uint64_t>s.mapped) - offset, r) < 0:
        return -1
    r.key.ptr = record + (r.key.ptr - raw)
    r.value.ptr = r.key.ptr + r.key.len
    return 0 if s.min_version <= r.version <= s.max_version else -1


cdef int segment_copy_from(const void* mapped, void* dst, size_t n) noexcept nogil:
    return guard_copy(dst, mapped, n)


cdef int segment_compare(Segment s, uint64_t offset, const uint8_t* key, size_t n) noexcept nogil:
    cdef Record r
    cdef int order = 1
    if segment_header(s, offset, s.flushed, &r) == 0:
        guard_compare(r.key.ptr, r.key.len, key, n, &order)
    return order
