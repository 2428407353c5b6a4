"""The file table: every file call of the engine goes through these pointers. POSIX by default; tests put others in.

Convention: a result below zero is -errno; no call raises, none needs the GIL, any thread may call. Paths are NUL-ended
bytes. Short reads and writes are left to the callers files_read and files_write below, which loop.
"""
from libc.stdint cimport int64_t, uint64_t

from kvcore.types cimport uint8_t


cdef struct FileTable:
    int (*open)(void* ctx, const char* path, int flags, int mode) noexcept nogil
    int (*close)(void* ctx, int fd) noexcept nogil
    ssize_t (*pread)(void* ctx, int fd, void* dst, size_t n, uint64_t offset) noexcept nogil
    ssize_t (*pwrite)(void* ctx, int fd, const void* src, size_t n, uint64_t offset) noexcept nogil
    int (*fdatasync)(void* ctx, int fd) noexcept nogil
    int (*fsync_dir)(void* ctx, const char* path) noexcept nogil
    int (*rename)(void* ctx, const char* source, const char* target) noexcept nogil
    # Give the file another name, in the same file system.
    int (*link)(void* ctx, const char* source, const char* target) noexcept nogil
    int (*unlink)(void* ctx, const char* path) noexcept nogil
    int (*mkdir)(void* ctx, const char* path) noexcept nogil
    int (*rmdir)(void* ctx, const char* path) noexcept nogil
    int (*ftruncate)(void* ctx, int fd, uint64_t size) noexcept nogil
    # Take disk space ahead: the file grows by zeros to offset + n.
    int (*fallocate)(void* ctx, int fd, uint64_t offset, uint64_t n) noexcept nogil
    # Begin to write n bytes of zeros within the file's present size, past the kernel's memory of it and without waiting.
    # Offset and n: multiples of 4096, n at most 128 KiB; fd was opened with O_DIRECT. *queue: 0 at first; one write at a
    # time. 0, or -errno: nothing is begun.
    int (*zero)(void* ctx, int fd, uint64_t offset, uint64_t n, uint64_t* queue) noexcept nogil
    # Wait until that is over. 0 or -errno.
    int (*zeroed)(void* ctx, uint64_t queue) noexcept nogil
    # Let the queue go, when what is under way is over.
    void (*zero_end)(void* ctx, uint64_t queue) noexcept nogil
    int64_t (*size)(void* ctx, int fd) noexcept nogil
    # Map n bytes for reading; they may lie beyond the end of the file as long as nobody touches them. NULL: refused.
    const uint8_t* (*map)(void* ctx, int fd, size_t n) noexcept nogil
    void (*unmap)(void* ctx, const uint8_t* address, size_t n) noexcept nogil
    # Map n bytes for store(): a window that changes the file. Ended by unmap. NULL: refused.
    uint8_t* (*window)(void* ctx, int fd, size_t n) noexcept nogil
    # Write through a window of the file, without a system call; the n bytes lie within its present size. 0 or -errno; what
    # was written before the error stays. As with pwrite the kernel has it then, whatever becomes of the process.
    int (*store)(void* ctx, int fd, uint8_t* window, const void* src, size_t n, uint64_t offset) noexcept nogil
    # Are these mapped bytes in memory, so that reading them waits for no disk? 1 or 0; 1 as well when nobody can tell.
    int (*resident)(void* ctx, const uint8_t* address, size_t n) noexcept nogil
    # Begin to read these mapped bytes into memory, without waiting for them.
    void (*fetch)(void* ctx, const uint8_t* address, size_t n) noexcept nogil
    # Names in a directory, each ended by NUL, in a malloc'ed block of *size bytes that the caller frees.
    int (*list)(void* ctx, const char* path, char** names, size_t* size) noexcept nogil
    # flock, exclusive, not waiting: -EWOULDBLOCK when another open file holds it.
    int (*lock)(void* ctx, int fd) noexcept nogil
    # Is the open file the one that the path names now? 1 or 0.
    int (*is_at)(void* ctx, int fd, const char* path) noexcept nogil
    # Unix time in milliseconds. May jump.
    int64_t (*clock)(void* ctx) noexcept nogil


cdef class Files:
    cdef FileTable call
    cdef void* ctx


# Read exactly n bytes unless the file ends first: bytes read, or -errno.
cdef ssize_t files_read(Files f, int fd, void* dst, size_t n, uint64_t offset) noexcept nogil

# Write all n bytes: 0, or -errno; what was written before the error stays in the file.
cdef int files_write(Files f, int fd, const void* src, size_t n, uint64_t offset) noexcept nogil

# Calls of the table that may wait for the file system's journal, without the GIL. Results as in the table.
cdef int files_open(Files f, bytes path, int flags) except? -1
cdef int files_rename(Files f, bytes source, bytes target) except? -1
cdef int files_link(Files f, bytes source, bytes target) except? -1
cdef int files_unlink(Files f, bytes path) except? -1
cdef int files_sync_directory(Files f, bytes path) except? -1
cdef int files_cut(Files f, int fd, uint64_t size) noexcept

# The one place that turns a result below zero into StorageError("cannot <what> <path>: <reason>"); passes others on.
cdef int64_t files_check(int64_t result, str what, bytes path) except? -1

# Create or replace a small file so that after a crash it is the old one or the new one, whole. Raises StorageError.
cdef int files_replace(Files f, bytes directory, bytes name, bytes content) except -1

# Names in a directory. Raises StorageError.
cdef list files_list(Files f, bytes path)

# All bytes of a small file. Raises StorageError.
cdef bytes files_read_all(Files f, bytes path)
