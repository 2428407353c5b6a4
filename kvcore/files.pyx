import os

from libc.errno cimport EINTR, EIO, ENOENT, ENOMEM, EOPNOTSUPP, errno
from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset, strlen
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_DIRECTORY, O_RDONLY, O_TRUNC, O_WRONLY
from posix.stat cimport fstat, mkdir, stat, struct_stat
from posix.time cimport CLOCK_REALTIME_COARSE, clock_gettime, timespec
from posix.unistd cimport close, fdatasync, fsync, ftruncate, pread, pwrite, rmdir, sysconf, unlink, _SC_PAGESIZE

from kvcore.guard cimport guard_copy

from kvcore.errors import StorageError


cdef extern from *:
    """
    #include <errno.h>
    #define set_errno(code) (errno = (code))
    """
    void set_errno(int code) noexcept nogil

cdef extern from "<fcntl.h>" nogil:
    int c_open "open"(const char* path, int flags, int mode)
    int fallocate(int fd, int mode, long long offset, long long size)
    enum: AT_FDCWD
    enum: AT_SYMLINK_FOLLOW

cdef extern from "<stdio.h>" nogil:
    int c_rename "rename"(const char* source, const char* target)

cdef extern from "<unistd.h>" nogil:
    int linkat(int from_fd, const char* source, int to_fd, const char* target, int flags)

cdef extern from "<sys/file.h>" nogil:
    int flock(int fd, int operation)
    enum: LOCK_EX
    enum: LOCK_NB

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t n, int protection, int flags, int fd, long long offset)
    int munmap(void* address, size_t n)
    int mincore(void* address, size_t n, unsigned char* pages)
    int madvise(void* address, size_t n, int advice)
    enum: MADV_WILLNEED
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_ANONYMOUS
    enum: MAP_PRIVATE
    enum: MAP_SHARED
    void* MAP_FAILED

cdef extern from "<dirent.h>" nogil:
    ctypedef struct DIR:
        pass
    struct dirent:
        char* d_name
    DIR* opendir(const char* path)
    dirent* readdir(DIR* handle)
    int closedir(DIR* handle)


# The kernel's own asynchronous writes: glibc's aio_write() is a thread.
cdef extern from *:
    """
    #include <linux/aio_abi.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static inline int kv_io_setup(unsigned n, aio_context_t* queue) { return (int)syscall(SYS_io_setup, n, queue); }
    static inline int kv_io_destroy(aio_context_t queue) { return (int)syscall(SYS_io_destroy, queue); }
    static inline int kv_io_submit(aio_context_t queue, long n, struct iocb** what) {
        return (int)syscall(SYS_io_submit, queue, n, what);
    }
    static inline int kv_io_wait(aio_context_t queue, struct io_event* event) {
        return (int)syscall(SYS_io_getevents, queue, 1, 1, event, NULL);
    }
    """
    ctypedef unsigned long aio_context_t
    enum: IOCB_CMD_PWRITE
    struct iocb:
        uint64_t aio_buf
        uint64_t aio_nbytes
        uint64_t aio_offset
        uint32_t aio_fildes
        uint16_t aio_lio_opcode
    struct io_event:
        int64_t res
    int kv_io_setup(unsigned int n, aio_context_t* queue) nogil
    int kv_io_destroy(aio_context_t queue) nogil
    int kv_io_submit(aio_context_t queue, long n, iocb** what) nogil
    int kv_io_wait(aio_context_t queue, io_event* event) nogil


cdef enum:
    PAGES = 256                 # pages asked after at a time
    ZEROS = 1 << 17             # bytes of zeros written at a time, at most

cdef size_t PAGE = sysconf(_SC_PAGESIZE)

# Where nobody writes there is only the kernel's one page of zeros: this takes no memory.
cdef void* zeros = mmap(NULL, ZEROS, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)


cdef inline int failed(int result) noexcept nogil:
    return -errno if result < 0 else result


cdef int posix_open(void* ctx, const char* path, int flags, int mode) noexcept nogil:
    cdef int fd
    while True:
        fd = c_open(path, flags | O_CLOEXEC, mode)
        if fd >= 0:
            return fd
        if errno != EINTR:
            return -errno


cdef int posix_close(void* ctx, int fd) noexcept nogil:
    # Not retried on EINTR: on Linux the descriptor is gone by then.
    return failed(close(fd))


cdef ssize_t posix_pread(void* ctx, int fd, void* dst, size_t n, uint64_t offset) noexcept nogil:
    cdef ssize_t got = pread(fd, dst, n, offset)
    return -errno if got < 0 else got


cdef ssize_t posix_pwrite(void* ctx, int fd, const void* src, size_t n, uint64_t offset) noexcept nogil:
    cdef ssize_t put = pwrite(fd, src, n, offset)
    return -errno if put < 0 else put


cdef int posix_fdatasync(void* ctx, int fd) noexcept nogil:
    return failed(fdatasync(fd))


cdef int posix_fsync_dir(void* ctx, const char* path) noexcept nogil:
    cdef int fd = posix_open(ctx, path, O_RDONLY | O_DIRECTORY, 0)
    if fd < 0:
        return fd
    cdef int result = failed(fsync(fd))
    close(fd)
    return result


cdef int posix_rename(void* ctx, const char* source, const char* target) noexcept nogil:
    return failed(c_rename(source, target))


cdef int posix_link(void* ctx, const char* source, const char* target) noexcept nogil:
    # Followed, or a symbolic link would be given the other name in the place of the file.
    return failed(linkat(AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW))


cdef int posix_unlink(void* ctx, const char* path) noexcept nogil:
    return failed(unlink(path))


cdef int posix_mkdir(void* ctx, const char* path) noexcept nogil:
    return failed(mkdir(path, 0o700))


cdef int posix_rmdir(void* ctx, const char* path) noexcept nogil:
    return failed(rmdir(path))


cdef int posix_ftruncate(void* ctx, int fd, uint64_t size) noexcept nogil:
    return failed(ftruncate(fd, size))


cdef int posix_fallocate(void* ctx, int fd, uint64_t offset, uint64_t n) noexcept nogil:
    # Not posix_fallocate(3): where the file system cannot, that one writes zeros.
    return failed(fallocate(fd, 0, offset, n))


cdef int posix_zero(void* ctx, int fd, uint64_t offset, uint64_t n, uint64_t* queue) noexcept nogil:
    cdef aio_context_t made = queue[0]
    cdef iocb what
    cdef iocb* first = &what
    if n > ZEROS or zeros == MAP_FAILED:
        return -EOPNOTSUPP
    if made == 0 and kv_io_setup(1, &made) < 0:
        return -errno
    queue[0] = made
    memset(&what, 0, sizeof(what))
    what.aio_lio_opcode = IOCB_CMD_PWRITE
    what.aio_fildes = fd
    what.aio_buf = <size_t>zeros
    what.aio_nbytes = n
    what.aio_offset = offset
    return -errno if kv_io_submit(made, 1, &first) < 0 else 0


cdef int posix_zeroed(void* ctx, uint64_t queue) noexcept nogil:
    cdef io_event event
    while kv_io_wait(queue, &event) < 0:
        if errno != EINTR:
            return -errno
    # Less than all of it is no error: the rest is space that is only reserved.
    return <int>min(event.res, 0)


cdef void posix_zero_end(void* ctx, uint64_t queue) noexcept nogil:
    kv_io_destroy(queue)        # this waits


cdef int64_t posix_size(void* ctx, int fd) noexcept nogil:
    cdef struct_stat info
    if fstat(fd, &info) < 0:
        return -errno
    return info.st_size


cdef const uint8_t* posix_map(void* ctx, int fd, size_t n) noexcept nogil:
    cdef void* address = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0)
    if address == MAP_FAILED:
        return NULL
    return <const uint8_t*>address


cdef void posix_unmap(void* ctx, const uint8_t* address, size_t n) noexcept nogil:
    munmap(<void*>address, n)


cdef uint8_t* posix_window(void* ctx, int fd, size_t n) noexcept nogil:
    cdef void* address = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    return NULL if address == MAP_FAILED else <uint8_t*>address


cdef int posix_store(void* ctx, int fd, uint8_t* window, const void* src, size_t n, uint64_t offset) noexcept nogil:
    return -EIO if guard_copy(window + offset, src, n) < 0 else 0


# The page that a mapped byte is in.
cdef inline uint8_t* page_of(const uint8_t* address) noexcept nogil:
    return <uint8_t*>(<size_t>address & ~(PAGE - 1))


cdef int posix_resident(void* ctx, const uint8_t* address, size_t n) noexcept nogil:
    cdef unsigned char[PAGES] pages
    cdef uint8_t* at = page_of(address)
    cdef size_t part, i
    while at < address + n:
        part = min(<size_t>(address + n - at), PAGES * PAGE)
        if mincore(at, part, pages) < 0:
            return 1
        for i in range((part + PAGE - 1) // PAGE):
            if pages[i] & 1 == 0:
                return 0
        at += part
    return 1


cdef void posix_fetch(void* ctx, const uint8_t* address, size_t n) noexcept nogil:
    cdef uint8_t* at = page_of(address)
    madvise(at, address + n - at, MADV_WILLNEED)


cdef int posix_list(void* ctx, const char* path, char** names, size_t* size) noexcept nogil:
    cdef DIR* handle = opendir(path)
    cdef dirent* entry
    cdef char* block = NULL
    cdef char* grown
    cdef size_t used = 0, room = 0, n
    cdef int result
    if handle == NULL:
        return -errno
    while True:
        set_errno(0)
        entry = readdir(handle)
        if entry == NULL:
            result = -errno         # 0: that was the last one
            break
        n = strlen(entry.d_name) + 1
        if room - used < n:
            room = room * 2 + n + 4096
            grown = <char*>realloc(block, room)
            if grown == NULL:
                free(block)
                closedir(handle)
                return -ENOMEM
            block = grown
        memcpy(block + used, entry.d_name, n)
        used += n
    closedir(handle)
    if result < 0:
        free(block)
        return result
    names[0] = block
    size[0] = used
    return 0


cdef int posix_lock(void* ctx, int fd) noexcept nogil:
    return failed(flock(fd, LOCK_EX | LOCK_NB))


cdef int posix_is_at(void* ctx, int fd, const char* path) noexcept nogil:
    cdef struct_stat one, other
    if fstat(fd, &one) < 0:
        return -errno
    if stat(path, &other) < 0:
        return 0 if errno == ENOENT else -errno
    return one.st_dev == other.st_dev and one.st_ino == other.st_ino


cdef int64_t posix_clock(void* ctx) noexcept nogil:
    # The coarse clock moves every few milliseconds and costs a quarter of the exact one: enough for versions and deadlines.
    cdef timespec now
    clock_gettime(CLOCK_REALTIME_COARSE, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef class Files:
    """The POSIX file table. A subclass puts other functions into `call` and its own state into `ctx`."""

    def __cinit__(self):
        self.ctx = NULL
        self.call.open = posix_open
        self.call.close = posix_close
        self.call.pread = posix_pread
        self.call.pwrite = posix_pwrite
        self.call.fdatasync = posix_fdatasync
        self.call.fsync_dir = posix_fsync_dir
        self.call.rename = posix_rename
        self.call.link = posix_link
        self.call.unlink = posix_unlink
        self.call.mkdir = posix_mkdir
        self.call.rmdir = posix_rmdir
        self.call.ftruncate = posix_ftruncate
        self.call.fallocate = posix_fallocate
        self.call.zero = posix_zero
        self.call.zeroed = posix_zeroed
        self.call.zero_end = posix_zero_end
        self.call.size = posix_size
        self.call.map = posix_map
        self.call.unmap = posix_unmap
        self.call.window = posix_window
        self.call.store = posix_store
        self.call.resident = posix_resident
        self.call.fetch = posix_fetch
        self.call.list = posix_list
        self.call.lock = posix_lock
        self.call.is_at = posix_is_at
        self.call.clock = posix_clock


cdef ssize_t files_read(Files f, int fd, void* dst, size_t n, uint64_t offset) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t got
    while done < n:
        got = f.call.pread(f.ctx, fd, <uint8_t*>dst + done, n - done, offset + done)
        if got == -EINTR:
            continue
        if got < 0:
            return got
        if got == 0:
            break
        done += got
    return done


cdef int files_write(Files f, int fd, const void* src, size_t n, uint64_t offset) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t put
    while done < n:
        put = f.call.pwrite(f.ctx, fd, <const uint8_t*>src + done, n - done, offset + done)
        if put == -EINTR:
            continue
        if put < 0:
            return <int>put
        if put == 0:
            return -EIO
        done += put
    return 0


cdef int files_open(Files f, bytes path, int flags) except? -1:
    cdef const char* name = path
    cdef int result
    with nogil:
        result = f.call.open(f.ctx, name, flags, 0o600)
    return result


cdef int files_rename(Files f, bytes source, bytes target) except? -1:
    cdef const char* before = source
    cdef const char* after = target
    cdef int result
    with nogil:
        result = f.call.rename(f.ctx, before, after)
    return result


cdef int files_link(Files f, bytes source, bytes target) except? -1:
    cdef const char* name = source
    cdef const char* other = target
    cdef int result
    with nogil:
        result = f.call.link(f.ctx, name, other)
    return result


cdef int files_unlink(Files f, bytes path) except? -1:
    cdef const char* name = path
    cdef int result
    with nogil:
        result = f.call.unlink(f.ctx, name)
    return result


cdef int files_sync_directory(Files f, bytes path) except? -1:
    cdef const char* name = path
    cdef int result
    with nogil:
        result = f.call.fsync_dir(f.ctx, name)
    return result


cdef int files_cut(Files f, int fd, uint64_t size) noexcept:
    cdef int result
    with nogil:
        result = f.call.ftruncate(f.ctx, fd, size)
    return result


cdef int64_t files_check(int64_t result, str what, bytes path) except? -1:
    if result >= 0:
        return result
    cdef int code = <int>-result
    raise StorageError(code, f"cannot {what} {os.fsdecode(path)}: {os.strerror(code)}")


cdef int files_replace(Files f, bytes directory, bytes name, bytes content) except -1:
    cdef bytes target = os.path.join(directory, name)
    cdef bytes temporary = target + b".tmp"
    cdef const char* source = content
    cdef size_t n = len(content)
    cdef int result
    cdef int fd = <int>files_check(files_open(f, temporary, O_WRONLY | O_CREAT | O_TRUNC), "create", temporary)
    with nogil:
        result = files_write(f, fd, source, n, 0)
        if result == 0:
            result = f.call.fdatasync(f.ctx, fd)
    cdef int closed = f.call.close(f.ctx, fd)
    if result < 0 or closed < 0:
        files_unlink(f, temporary)
    files_check(result, "write", temporary)
    files_check(closed, "close", temporary)
    files_check(files_rename(f, temporary, target), "rename", temporary)
    files_check(files_sync_directory(f, directory), "sync directory", directory)
    return 0


cdef list files_list(Files f, bytes path):
    cdef char* names = NULL
    cdef size_t size = 0
    files_check(f.call.list(f.ctx, path, &names, &size), "list", path)
    try:
        return [name for name in names[:size].split(b"\0") if name not in (b"", b".", b"..")]
    finally:
        free(names)


cdef bytes files_read_all(Files f, bytes path):
    cdef int fd = <int>files_check(files_open(f, path, O_RDONLY), "open", path)
    cdef int64_t size = f.call.size(f.ctx, fd)
    cdef ssize_t got = <ssize_t>size
    cdef bytearray content = bytearray(max(size, 0))
    cdef char* dst = content
    if size > 0:
        got = files_read(f, fd, dst, size, 0)
    f.call.close(f.ctx, fd)
    files_check(got, "read", path)
    return bytes(content[:got])
