"""C functions of the engine, within reach of the tests. Built in place only, never shipped."""
import os

from kvcore.bytebuf cimport ByteBuf, bytebuf_append, bytebuf_clear, bytebuf_discard
from kvcore.files cimport Files, FileTable
from kvcore.hashindex cimport Entry, HashIndex, index_bytes, index_first, index_hash, index_insert, index_next, index_remove
from kvcore.pace cimport pace
from kvcore.record cimport crc32c_of
from kvcore.regions cimport Region, regions_bytes, regions_give, regions_take
from kvcore.types cimport Location, uint8_t
from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset


def append(ByteBuf b not None, bytes data not None):
    bytebuf_append(b, <const char*>data, len(data))


def discard(ByteBuf b not None, size_t n):
    bytebuf_discard(b, n)


def clear(ByteBuf b not None, size_t keep):
    bytebuf_clear(b, keep)


def room(ByteBuf b not None):
    return b.cap


def work(size_t records):
    """Work of so many records, without the GIL."""
    cdef size_t _i
    with nogil:
        for _i in range(records):
            pace(1)


def checksum(bytes data not None, uint32_t seed):
    return crc32c_of(<const char*>data, len(data), seed)


def key_hash(HashIndex index not None, bytes key not None):
    return index_hash(index, <const uint8_t*><const char*>key, len(key))


def insert(HashIndex index not None, uint64_t hash, uint32_t tag):
    """An entry that is told from others by `tag`."""
    index_insert(index, hash, Location(tag, tag, 1))


def find(HashIndex index not None, uint64_t hash):
    """The tags of all entries with this hash."""
    cdef Entry* entry = index_first(index, hash)
    tags = []
    while entry != NULL:
        tags.append(entry.at.segment)
        entry = index_next(index, hash, entry)
    return tags


def remove(HashIndex index not None, uint64_t hash, uint32_t tag):
    """Take the entry with this hash and tag out; False when there is none."""
    cdef Entry* entry = index_first(index, hash)
    while entry != NULL:
        if entry.at.segment == tag:
            index_remove(index, hash, entry)
            return True
        entry = index_next(index, hash, entry)
    return False


def table_bytes(HashIndex index not None):
    return index_bytes(index)


cdef class Regions:
    """Memory for tables, each known by the number that take() returns."""

    cdef Region* newest
    cdef list tables

    def __cinit__(self):
        self.tables = []

    def take(self, size_t n):
        """A table of n bytes."""
        self.tables.append((<size_t>regions_take(&self.newest, n), n))
        return len(self.tables) - 1

    def address(self, number):
        return self.tables[number][0]

    def fill(self, number, uint8_t byte):
        at, n = self.tables[number]
        memset(<void*><size_t>at, byte, n)

    def read(self, number):
        at, n = self.tables[number]
        return (<const char*><size_t>at)[:<size_t>n]

    def give(self, number):
        at, n = self.tables[number]
        regions_give(&self.newest, <void*><size_t>at, n)

    @property
    def bytes(self):
        return regions_bytes(self.newest)


cdef int64_t hand_clock(void* ctx) noexcept nogil:
    return (<int64_t*>ctx)[0]


cdef class HandFiles(Files):
    """The POSIX file table with a clock that stands at `now` (unix milliseconds) until the test sets it."""

    cdef public int64_t now

    def __cinit__(self):
        self.ctx = &self.now
        self.call.clock = hand_clock


cdef ssize_t block_pread(void* ctx, int fd, void* dst, size_t n, uint64_t offset) noexcept nogil:
    if offset < (<BadBlocks>ctx).end and offset + n > (<BadBlocks>ctx).start:
        return (<BadBlocks>ctx).result
    return (<BadBlocks>ctx).real.pread(ctx, fd, dst, n, offset)


cdef class BadBlocks(Files):
    """A file table with which bytes [start, end) of no file can be read: `result` is what reading them returns."""

    cdef FileTable real
    cdef uint64_t start
    cdef uint64_t end
    cdef ssize_t result

    def __cinit__(self, start, end, result=-EIO):
        self.start = start
        self.end = end
        self.result = result
        self.real = self.call
        self.ctx = <void*>self
        self.call.pread = block_pread


cdef class HookedFiles(Files):
    """A file table to watch, and to make fail: hook(name, path or descriptor) is called before each call; None lets it
    happen, a number is its result.
    """

    cdef FileTable real
    cdef object hook

    def __cinit__(self, hook):
        self.hook = hook
        self.real = self.call
        self.ctx = <void*>self
        self.call.open = hooked_open
        self.call.pwrite = hooked_pwrite
        self.call.store = hooked_store
        self.call.fdatasync = hooked_fdatasync
        self.call.fsync_dir = hooked_fsync_dir
        self.call.rename = hooked_rename
        self.call.link = hooked_link
        self.call.unlink = hooked_unlink
        self.call.ftruncate = hooked_ftruncate
        self.call.fallocate = hooked_fallocate
        self.call.list = hooked_list
        self.call.lock = hooked_lock


cdef int64_t ask(void* ctx, str name, object what) except? -1:
    said = (<HookedFiles>ctx).hook(name, what)
    return 1 if said is None else said


cdef int hooked_open(void* ctx, const char* path, int flags, int mode) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "open", <bytes>path)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.open(ctx, path, flags, mode)


cdef ssize_t hooked_pwrite(void* ctx, int fd, const void* src, size_t n, uint64_t offset) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "pwrite", fd)
        return said if said <= 0 else (<HookedFiles>ctx).real.pwrite(ctx, fd, src, n, offset)


cdef int hooked_store(void* ctx, int fd, uint8_t* window, const void* src, size_t n, uint64_t offset) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "pwrite", fd)       # what refuses one way of writing refuses the other
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.store(ctx, fd, window, src, n, offset)


cdef int hooked_fdatasync(void* ctx, int fd) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "fdatasync", fd)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.fdatasync(ctx, fd)


cdef int hooked_fsync_dir(void* ctx, const char* path) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "fsync_dir", <bytes>path)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.fsync_dir(ctx, path)


cdef int hooked_rename(void* ctx, const char* source, const char* target) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "rename", <bytes>target)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.rename(ctx, source, target)


cdef int hooked_link(void* ctx, const char* source, const char* target) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "link", <bytes>source)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.link(ctx, source, target)


cdef int hooked_unlink(void* ctx, const char* path) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "unlink", <bytes>path)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.unlink(ctx, path)


cdef int hooked_ftruncate(void* ctx, int fd, uint64_t size) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "ftruncate", fd)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.ftruncate(ctx, fd, size)


cdef int hooked_fallocate(void* ctx, int fd, uint64_t offset, uint64_t n) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "fallocate", fd)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.fallocate(ctx, fd, offset, n)


cdef int hooked_list(void* ctx, const char* path, char** names, size_t* size) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "list", <bytes>path)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.list(ctx, path, names, size)


cdef int hooked_lock(void* ctx, int fd) noexcept nogil:
    cdef int64_t said
    with gil:
        said = ask(ctx, "lock", fd)
        return <int>said if said <= 0 else (<HookedFiles>ctx).real.lock(ctx, fd)


cdef ssize_t noted_pwrite(void* ctx, int fd, const void* src, size_t n, uint64_t offset) noexcept nogil:
    with gil:
        (<WrittenFiles>ctx).written.append((os.readlink(f"/proc/self/fd/{fd}"), offset, n))
    return (<WrittenFiles>ctx).real.pwrite(ctx, fd, src, n, offset)


cdef class WrittenFiles(Files):
    """The POSIX file table; `written`: (path, offset, bytes) of each pwrite."""

    cdef FileTable real
    cdef readonly list written

    def __cinit__(self):
        self.written = []
        self.real = self.call
        self.ctx = <void*>self
        self.call.pwrite = noted_pwrite


cdef class ColdFiles(Files):
    """A file table that says which mapped pages are in memory: none after chill(), then those that were fetched; after
    warm() all.

    asked, fetched: how often it was asked, and told to fetch (int). forgets: what is fetched is gone at once (bool).
    """

    cdef set pages
    cdef readonly int asked
    cdef readonly int fetched
    cdef public bint forgets

    def __cinit__(self):
        self.ctx = <void*>self
        self.call.resident = cold_resident
        self.call.fetch = cold_fetch

    def chill(self):
        self.pages = set()

    def warm(self):
        self.pages = None


cdef range pages_of(const uint8_t* address, size_t n):
    return range(<size_t>address // 4096, (<size_t>address + n + 4095) // 4096)


cdef int cold_resident(void* ctx, const uint8_t* address, size_t n) noexcept nogil:
    with gil:
        files = <ColdFiles>ctx
        files.asked += 1
        return files.pages is None or files.pages.issuperset(pages_of(address, n))


cdef void cold_fetch(void* ctx, const uint8_t* address, size_t n) noexcept nogil:
    with gil:
        files = <ColdFiles>ctx
        files.fetched += 1
        if files.pages is not None and not files.forgets:
            files.pages.update(pages_of(address, n))


cdef class Calls:
    """The functions of a file table, for Python: results as they are, below zero -errno; pread and list: bytes."""

    cdef Files files

    def __cinit__(self, Files files not None):
        self.files = files

    def open(self, bytes path, int flags):
        return self.files.call.open(self.files.ctx, path, flags, 0o600)

    def close(self, int fd):
        return self.files.call.close(self.files.ctx, fd)

    def pread(self, int fd, size_t n, uint64_t offset):
        cdef bytearray content = bytearray(n)
        cdef char* dst = content
        cdef ssize_t got = self.files.call.pread(self.files.ctx, fd, dst, n, offset)
        return got if got < 0 else bytes(content[:got])

    def pwrite(self, int fd, bytes content, uint64_t offset):
        return self.files.call.pwrite(self.files.ctx, fd, <const char*>content, len(content), offset)

    def store(self, int fd, bytes content, uint64_t offset, size_t size):
        """Through a window of `size` bytes that is there only for this."""
        cdef uint8_t* window = self.files.call.window(self.files.ctx, fd, size)
        cdef int result = self.files.call.store(
            self.files.ctx, fd, window, <const char*>content, len(content), offset)
        self.files.call.unmap(self.files.ctx, window, size)
        return result

    def fdatasync(self, int fd):
        return self.files.call.fdatasync(self.files.ctx, fd)

    def fsync_dir(self, bytes path):
        return self.files.call.fsync_dir(self.files.ctx, path)

    def rename(self, bytes source, bytes target):
        return self.files.call.rename(self.files.ctx, source, target)

    def unlink(self, bytes path):
        return self.files.call.unlink(self.files.ctx, path)

    def mkdir(self, bytes path):
        return self.files.call.mkdir(self.files.ctx, path)

    def rmdir(self, bytes path):
        return self.files.call.rmdir(self.files.ctx, path)

    def ftruncate(self, int fd, uint64_t size):
        return self.files.call.ftruncate(self.files.ctx, fd, size)

    def zero(self, int fd, uint64_t offset, uint64_t n, uint64_t queue):
        """The result, and the queue."""
        result = self.files.call.zero(self.files.ctx, fd, offset, n, &queue)
        return result, queue

    def zeroed(self, uint64_t queue):
        return self.files.call.zeroed(self.files.ctx, queue)

    def zero_end(self, uint64_t queue):
        self.files.call.zero_end(self.files.ctx, queue)

    def fallocate(self, int fd, uint64_t offset, uint64_t n):
        return self.files.call.fallocate(self.files.ctx, fd, offset, n)

    def size(self, int fd):
        return self.files.call.size(self.files.ctx, fd)

    def lock(self, int fd):
        return self.files.call.lock(self.files.ctx, fd)

    def is_at(self, int fd, bytes path):
        return self.files.call.is_at(self.files.ctx, fd, path)

    def list(self, bytes path):
        cdef char* names = NULL
        cdef size_t size = 0
        cdef int result = self.files.call.list(self.files.ctx, path, &names, &size)
        if result < 0:
            return result
        try:
            return sorted(name for name in names[:size].split(b"\0") if name not in (b"", b".", b".."))
        finally:
            free(names)


cdef class Mapping:
    """n bytes of an open file, mapped until this object goes."""

    cdef Files files
    cdef const uint8_t* address
    cdef size_t n

    def __cinit__(self, Files files not None, int fd, size_t n):
        self.files = files
        self.n = n
        self.address = files.call.map(files.ctx, fd, n)

    def read(self, size_t start, size_t end):
        return self.address[start:end]

    def __dealloc__(self):
        self.files.call.unmap(self.files.ctx, self.address, self.n)
