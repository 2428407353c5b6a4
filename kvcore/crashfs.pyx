"""A file table in memory that knows what is on the disk: it can lose power, be killed, and fail any call.

    names     what the kernel shows      a file:  data     what the kernel shows, and every mapping of it
      ^                                             ^
      | changes since the last                      | changes since the last
      | fsync of their directory                    | fdatasync of the file
    durable   what the disk has                   durable  what the disk has

A change is a write, a cut or growth of one file, or one entry of a directory that is set or removed (both at once by a
rename within a directory). fdatasync makes a file's content and size durable but not its name; fsync_dir makes names
durable but no content. What was changed since may or may not be on the disk after a loss of power, each change by itself,
and a write in parts. After a sync that failed the changes before it stay in the kernel and never reach the disk, as when
the kernel drops the pages.

Limits: a file has at most 128 MiB. Reading a mapping beyond the end of its file gives zeros instead of SIGBUS.
Thread: any; each call holds the GIL.
"""
cimport cython
from libc.errno cimport EAGAIN, EBADF, EEXIST, EFBIG, EINVAL, EISDIR, ENOENT, ENOMEM, ENOTDIR, ENOTEMPTY
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_CREAT, O_EXCL, O_TRUNC

from kvcore.crashnode cimport LARGEST, Node, node_changed, node_copy, node_directory, node_file, node_parts, node_resize
from kvcore.files cimport Files
from kvcore.types cimport uint8_t


cdef enum:
    FIRST_FD = 1 << 20          # above what the kernel gives out

SHORT = -1                      # for fail(): half of what was asked is read or written
SECTOR, PAGE = 512, 4096        # a write is torn at multiples of one of them


# Those of the changes whose bit in keep(how many there are) is set.
cdef list chosen(list changes, keep):
    if not changes:
        return changes
    bits = keep(len(changes))
    return [change for i, change in enumerate(changes) if bits >> i & 1]


cdef int apply_entries(dict names, list changes) except -1:
    for removed, added, node in changes:
        names.pop(removed, None)
        if added is not None:
            names[added] = node
    return 0


cdef inline bytes parent_of(bytes path):
    return path.rpartition(b"/")[0] or b"/"


@cython.no_gc_clear             # stores that are let go without close still close their files
cdef class CrashFiles(Files):
    """A file system in memory with one directory, "/". Paths are absolute bytes.

    calls: dict of str to int, how often each function of the table was called; mutations: how many calls that change
    something there were (int); retries: how often a file was synced although that had failed before (int). now: the clock,
    unix milliseconds (int). watch: called with the name of each call that changes something, before it happens; must not
    raise.
    """

    cdef dict names                 # path to Node
    cdef dict durable
    cdef dict changes               # path of a directory to a list of (path removed, path set or None, Node)
    cdef dict open_files            # descriptor to Node
    cdef dict mappings              # address to Node
    cdef dict zeroing               # queue to (Node, offset, bytes)
    cdef int last_fd
    cdef list faults                # of [call, calls until then, errno or SHORT, forever]
    cdef bint drops                 # does a sync that fails now lose what it should have put on the disk?
    cdef readonly dict calls
    cdef readonly uint64_t mutations
    cdef readonly uint64_t retries
    cdef public object watch
    cdef public int64_t now

    def __cinit__(self):
        self.ctx = <void*>self
        self.call.open = crash_open
        self.call.close = crash_close
        self.call.pread = crash_pread
        self.call.pwrite = crash_pwrite
        self.call.fdatasync = crash_fdatasync
        self.call.fsync_dir = crash_fsync_dir
        self.call.rename = crash_rename
        self.call.unlink = crash_unlink
        self.call.mkdir = crash_mkdir
        self.call.rmdir = crash_rmdir
        self.call.ftruncate = crash_ftruncate
        self.call.fallocate = crash_fallocate
        self.call.zero = crash_zero
        self.call.zeroed = crash_zeroed
        self.call.zero_end = crash_zero_end
        self.call.size = crash_size
        self.call.map = crash_map
        self.call.window = crash_window
        self.call.store = crash_store
        self.call.resident = crash_resident
        self.call.fetch = crash_fetch
        self.call.unmap = crash_unmap
        self.call.list = crash_list
        self.call.lock = crash_lock
        self.call.is_at = crash_is_at
        self.call.clock = crash_clock
        root = node_directory()
        self.names = {b"/": root}
        self.durable = {b"/": root}
        self.changes = {}
        self.open_files = {}
        self.mappings = {}
        self.zeroing = {}
        self.last_fd = FIRST_FD
        self.faults = []
        self.calls = {}
        self.now = 1_800_000_000_000

    # ---- for the tests

    def fail(self, call, at, code, forever=False):
        """Have the at-th (int, from 1) such call from now on fail with `code` (errno), or do half of its work (SHORT).

        call: a name as in `calls`, or None: any that changes something. forever: every later one fails as well; with None
        that is as if the process had died.
        """
        self.faults.append([call, at, code, forever])

    def heal(self):
        """Forget what fail() was told."""
        self.faults.clear()

    def unsynced(self, grain=PAGE):
        """How many parts of changes the disk may or may not have (int)."""
        nodes = {node for node in self.durable.values()} | {
            node for changes in self.changes.values() for _, _, node in changes if node is not None}
        return sum(len(changes) for changes in self.changes.values()) + sum(
            len(node_parts((<Node>node).changes, grain)) for node in nodes)

    def after_kill(self):
        """A CrashFiles as it is when the process has died: all that the kernel knows, no descriptors, no locks."""
        cdef CrashFiles after = CrashFiles()
        cdef dict copies = {None: None}
        after.now = self.now
        after.names = {path: node_copy(node, copies) for path, node in self.names.items()}
        after.durable = {path: node_copy(node, copies) for path, node in self.durable.items()}
        after.changes = {
            directory: [(removed, added, node_copy(node, copies)) for removed, added, node in changes]
            for directory, changes in self.changes.items()}
        return after

    def after_power_loss(self, keep, grain=PAGE):
        """A CrashFiles as it is when the power has gone: what was synced, and of each file's or directory's unsynced changes
        those that `keep` says.

        keep: called with the number of parts (int) of one file or directory, in the order in which they were made; returns
        an int whose bits say which of them reached the disk. grain: bytes, SECTOR or PAGE, at whose multiples a write tears.
        """
        cdef CrashFiles after = CrashFiles()
        cdef dict names = dict(self.durable), copies = {}
        cdef Node node, copy
        cdef bytes content
        after.now = self.now
        for changes in self.changes.values():
            apply_entries(names, chosen(changes, keep))
        for path in sorted(names):
            node = names[path]
            if path == b"/" or parent_of(path) not in after.names:
                continue
            copy = copies.get(node)
            if copy is None and node.data == NULL:
                copy = node_directory()
            elif copy is None:
                content = node_changed(node.durable, chosen(node_parts(node.changes, grain), keep))
                copy = node_file(content, len(content))
                copy.durable = content
            after.names[path] = copies[node] = copy
        after.durable = dict(after.names)
        return after

    def paths(self):
        """The paths of all files (list of bytes)."""
        return [path for path, node in self.names.items() if (<Node>node).data != NULL]

    def read(self, path):
        """The content of a file (bytes) as the kernel shows it."""
        cdef Node node = self.names[path]
        return node.data[:node.size]

    def flip(self, path, uint64_t bit):
        """Turn one bit of what the kernel has of a file; the lowest of the first byte is 0."""
        cdef Node node = self.names[path]
        node.data[bit // 8] ^= <uint8_t>(1 << bit % 8)

    def cut(self, path, uint64_t size):
        """End what the kernel has of a file after `size` bytes."""
        cdef Node node = self.names[path]
        if size < node.size:
            node_resize(node, size)

    # ---- the calls

    # Count the call. 0: it happens; 1: half of it does; below zero: it fails so.
    cdef int enter(self, str call, bint mutating) noexcept:
        cdef int said = 0
        self.calls[call] = self.calls.get(call, 0) + 1
        if mutating:
            self.mutations += 1
            if self.watch is not None:
                self.watch(call)
        for fault in self.faults:
            if fault[0] == call or (mutating and fault[0] is None):
                fault[1] -= 1
                if said == 0 and (fault[1] == 0 or (fault[1] < 0 and fault[3])):
                    said = 1 if fault[2] == SHORT else -<int>fault[2]
                    self.drops = fault[0] is not None
        return said

    cdef int set_entry(self, bytes directory, bytes removed, bytes added, Node node) noexcept:
        cdef list change = [(removed, added, node)]
        apply_entries(self.names, change)
        self.changes.setdefault(directory, []).extend(change)
        return 0

    cdef int open_file(self, bytes path, int flags) noexcept:
        cdef Node node = self.names.get(path)
        cdef bint creates = node is None and flags & O_CREAT
        cdef bint cuts = node is not None and flags & O_TRUNC
        cdef int said = self.enter("open", creates or cuts)
        if said < 0:
            return said
        if node is None and not creates:
            return -ENOENT
        if node is not None and flags & O_CREAT and flags & O_EXCL:
            return -EEXIST
        if node is not None and node.data == NULL:
            return -EISDIR
        if creates:
            if parent_of(path) not in self.names:
                return -ENOENT
            try:
                node = node_file(NULL, 0)
            except MemoryError:
                return -ENOMEM
            self.set_entry(parent_of(path), None, path, node)
        elif cuts:
            node_resize(node, 0)
        self.last_fd += 1
        self.open_files[self.last_fd] = node
        return self.last_fd

    cdef int close_file(self, int fd) noexcept:
        cdef Node node = self.open_files.pop(fd, None)
        if node is None:
            return -EBADF
        if node.holder == fd:
            node.holder = 0
        return min(self.enter("close", False), 0)

    cdef ssize_t read_file(self, int fd, void* dst, size_t n, uint64_t offset) noexcept:
        cdef Node node = self.open_files.get(fd)
        cdef int said = self.enter("pread", False)
        if said < 0 or node is None:
            return min(said, -EBADF if node is None else 0)
        n = 0 if offset >= node.size else min(<uint64_t>n, node.size - offset)
        if said == 1:
            n = (n + 1) // 2
        memcpy(dst, node.data + offset, n)
        return n

    cdef ssize_t write_file(self, int fd, const void* src, size_t n, uint64_t offset) noexcept:
        cdef Node node = self.open_files.get(fd)
        cdef int said = self.enter("pwrite", True)
        if said < 0:
            return said
        if node is None:
            return -EBADF
        if offset > LARGEST or n > LARGEST - offset:
            return -EFBIG
        if said == 1:
            n = (n + 1) // 2
        if n == 0:
            return 0
        memcpy(node.data + offset, src, n)
        node.size = max(node.size, offset + n)
        node.changes.append((offset, (<const char*>src)[:n]))
        return n

    # As write_file, but the process may also end in the middle of it: half of it is in the kernel then.
    cdef int store_in_file(self, int fd, const uint8_t* src, size_t n, uint64_t offset) noexcept:
        cdef Node node = self.open_files.get(fd)
        cdef size_t half = n // 2
        cdef int said = self.enter("store", True)
        if said < 0 or node is None:
            return min(said, -EBADF if node is None else 0)
        for start, end in ((0, half), (half, n)):
            if start and self.watch is not None:
                self.watch("store")
            memcpy(node.data + offset + <size_t>start, src + <size_t>start, <size_t>(end - start))
            node.changes.append((offset + start, (<const char*>src)[start:end]))
        return 0

    cdef int sync_file(self, int fd) noexcept:
        cdef Node node = self.open_files.get(fd)
        cdef int said = self.enter("fdatasync", True)
        if node is None:
            return -EBADF
        if node.failed:
            self.retries += 1
        if said >= 0:
            node.durable = node_changed(node.durable, node.changes)
        if said >= 0 or self.drops:
            node.changes = []
        node.failed |= said < 0
        return min(said, 0)

    cdef int sync_directory(self, bytes path) noexcept:
        cdef int said = self.enter("fsync_dir", True)
        if path not in self.names:
            return -ENOENT
        if said >= 0:
            apply_entries(self.durable, self.changes.get(path, []))
        if said >= 0 or self.drops:
            self.changes.pop(path, None)
        return min(said, 0)

    cdef int rename_file(self, bytes source, bytes target) noexcept:
        cdef int said = self.enter("rename", True)
        cdef Node node = self.names.get(source)
        if said < 0:
            return said
        if node is None or parent_of(target) not in self.names:
            return -ENOENT
        if node.data == NULL:
            return -EISDIR
        if parent_of(source) == parent_of(target):
            return self.set_entry(parent_of(source), source, target, node)
        self.set_entry(parent_of(target), None, target, node)
        return self.set_entry(parent_of(source), source, None, None)

    cdef int remove(self, str call, bytes path) noexcept:
        cdef int said = self.enter(call, True)
        cdef Node node = self.names.get(path)
        if said < 0:
            return said
        if node is None:
            return -ENOENT
        if (node.data == NULL) != (call == "rmdir"):
            return -EISDIR if node.data == NULL else -ENOTDIR
        if any([parent_of(other) == path for other in self.names]):
            return -ENOTEMPTY
        return self.set_entry(parent_of(path), path, None, None)

    cdef int make_directory(self, bytes path) noexcept:
        cdef int said = self.enter("mkdir", True)
        if said < 0:
            return said
        if path in self.names:
            return -EEXIST
        if parent_of(path) not in self.names:
            return -ENOENT
        return self.set_entry(parent_of(path), None, path, node_directory())

    # Set the size of a file, or make sure that it has at least that.
    cdef int set_size(self, str call, int fd, uint64_t size, bint at_least) noexcept:
        cdef Node node = self.open_files.get(fd)
        cdef int said = self.enter(call, True)
        if said < 0:
            return said
        if node is None:
            return -EBADF
        if size > LARGEST:
            return -EFBIG
        if not at_least or size > node.size:
            node_resize(node, size)
        if not at_least:
            # As in the kernel they are over before it cuts: what is left of them was zeros already.
            self.zeroing = {queue: (None if at is node else at, *rest) for queue, (at, *rest) in self.zeroing.items()}
        return 0

    # They are written when somebody waits for them, as late as that, over whatever is there.
    cdef int zero_file(self, int fd, uint64_t offset, uint64_t n, uint64_t* queue) noexcept:
        cdef Node node = self.open_files.get(fd)
        cdef int said = self.enter("zero", True)
        if said < 0 or node is None:
            return min(said, -EBADF if node is None else 0)
        if offset % PAGE or n % PAGE or n > node.size or offset > node.size - n or queue[0] in self.zeroing:
            return -EINVAL
        if queue[0] == 0:
            self.last_fd += 1
            queue[0] = self.last_fd
        self.zeroing[queue[0]] = (node, offset, n)
        return 0

    cdef int zeros_are_over(self, uint64_t queue) noexcept:
        cdef Node node
        cdef int said = self.enter("zeroed", False)
        if queue not in self.zeroing:
            return -EINVAL
        node, offset, n = self.zeroing.pop(queue)
        if node is not None:
            memset(node.data + <uint64_t>offset, 0, n)
            node.changes.append((offset, bytes(n)))
        return min(said, 0)

    cdef int is_file_at(self, int fd, bytes path) noexcept:
        cdef Node node = self.open_files.get(fd)
        return -EBADF if node is None else node is self.names.get(path)

    cdef int64_t size_of(self, int fd) noexcept:
        cdef Node node = self.open_files.get(fd)
        return -EBADF if node is None else <int64_t>node.size

    cdef int list_names(self, bytes path, char** names, size_t* size) noexcept:
        cdef int said = self.enter("list", False)
        cdef bytes block
        if said < 0:
            return said
        if path not in self.names:
            return -ENOENT
        block = b"".join([name.rpartition(b"/")[2] + b"\0" for name in self.names
                          if name != b"/" and parent_of(name) == path])
        names[0] = <char*>malloc(max(<size_t>len(block), <size_t>1))
        if names[0] == NULL:
            return -ENOMEM
        size[0] = len(block)
        memcpy(names[0], <const char*>block, len(block))
        return 0

    cdef int lock_file(self, int fd) noexcept:
        cdef Node node = self.open_files.get(fd)
        cdef int said = self.enter("lock", False)
        if said < 0:
            return said
        if node is None:
            return -EBADF
        if node.holder not in (0, fd):
            return -EAGAIN
        node.holder = fd
        return 0

    cdef const uint8_t* map_file(self, int fd, size_t n) noexcept:
        cdef Node node = self.open_files.get(fd)
        if self.enter("map", False) < 0 or node is None or n > LARGEST:
            return NULL
        node.mapped += 1
        self.mappings[<size_t>node.data] = node
        return node.data

    cdef void unmap_file(self, const uint8_t* address) noexcept:
        cdef Node node = self.mappings.get(<size_t>address)
        if node is None:            # the garbage collector came first
            return
        node.mapped -= 1
        if node.mapped == 0:
            del self.mappings[<size_t>address]


# ---- the table

cdef int crash_open(void* ctx, const char* path, int flags, int mode) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).open_file(path, flags)


cdef int crash_close(void* ctx, int fd) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).close_file(fd)


cdef ssize_t crash_pread(void* ctx, int fd, void* dst, size_t n, uint64_t offset) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).read_file(fd, dst, n, offset)


cdef ssize_t crash_pwrite(void* ctx, int fd, const void* src, size_t n, uint64_t offset) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).write_file(fd, src, n, offset)


cdef int crash_fdatasync(void* ctx, int fd) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).sync_file(fd)


cdef int crash_fsync_dir(void* ctx, const char* path) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).sync_directory(path)


cdef int crash_rename(void* ctx, const char* source, const char* target) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).rename_file(source, target)


cdef int crash_unlink(void* ctx, const char* path) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).remove("unlink", path)


cdef int crash_mkdir(void* ctx, const char* path) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).make_directory(path)


cdef int crash_rmdir(void* ctx, const char* path) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).remove("rmdir", path)


cdef int crash_ftruncate(void* ctx, int fd, uint64_t size) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).set_size("ftruncate", fd, size, False)


cdef int crash_fallocate(void* ctx, int fd, uint64_t offset, uint64_t n) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).set_size("fallocate", fd, offset + n, True)


cdef int crash_zero(void* ctx, int fd, uint64_t offset, uint64_t n, uint64_t* queue) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).zero_file(fd, offset, n, queue)


cdef int crash_zeroed(void* ctx, uint64_t queue) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).zeros_are_over(queue)


cdef void crash_zero_end(void* ctx, uint64_t queue) noexcept nogil:
    with gil:
        (<CrashFiles>ctx).zeros_are_over(queue)


cdef int64_t crash_size(void* ctx, int fd) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).size_of(fd)


cdef const uint8_t* crash_map(void* ctx, int fd, size_t n) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).map_file(fd, n)


cdef void crash_unmap(void* ctx, const uint8_t* address, size_t n) noexcept nogil:
    with gil:
        (<CrashFiles>ctx).unmap_file(address)


cdef uint8_t* crash_window(void* ctx, int fd, size_t n) noexcept nogil:
    with gil:
        return <uint8_t*>(<CrashFiles>ctx).map_file(fd, n)


cdef int crash_store(void* ctx, int fd, uint8_t* window, const void* src, size_t n, uint64_t offset) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).store_in_file(fd, <const uint8_t*>src, n, offset)


cdef int crash_resident(void* ctx, const uint8_t* address, size_t n) noexcept nogil:
    return 1


cdef void crash_fetch(void* ctx, const uint8_t* address, size_t n) noexcept nogil:
    pass


cdef int crash_list(void* ctx, const char* path, char** names, size_t* size) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).list_names(path, names, size)


cdef int crash_lock(void* ctx, int fd) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).lock_file(fd)


cdef int crash_is_at(void* ctx, int fd, const char* path) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).is_file_at(fd, path)


cdef int64_t crash_clock(void* ctx) noexcept nogil:
    with gil:
        return (<CrashFiles>ctx).now
