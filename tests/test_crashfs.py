"""The file table in memory: the same answers as the kernel's, and what it leaves after the power has gone."""

import errno
import os
import random

from twisted.trial.unittest import SynchronousTestCase

from kvcore.crashfs import PAGE, SECTOR, SHORT, CrashFiles
from kvcore.files import Files
from tests.probe import Calls, Mapping

CREATE = os.O_RDWR | os.O_CREAT
FLAGS = (os.O_RDWR, CREATE, CREATE | os.O_EXCL, CREATE | os.O_TRUNC)
NAMES = (b"/a", b"/b", b"/c")
CALLS = (
    "open", "open", "open", "pwrite", "pwrite", "pread", "pread", "ftruncate", "fallocate", "size", "rename", "unlink",
    "mkdir", "rmdir", "list", "fdatasync", "fsync_dir", "close", "is_at", "lock")


def nothing(parts):
    return 0


def everything(parts):
    return -1


class LikeTheKernelTest(SynchronousTestCase):
    """The same calls on the POSIX table and on the one in memory have the same results."""

    def setUp(self):
        top = os.path.abspath(self.mktemp()).encode()
        os.mkdir(top)
        self.tables = [(Files(), top), (CrashFiles(), b"/top")]
        self.kernel, self.memory = [Calls(files) for files, _ in self.tables]
        self.memory.mkdir(b"/top")
        self.open_files = []  # of (descriptor of the kernel, descriptor in memory)
        self.addCleanup(lambda: [self.kernel.close(one) for one, _ in self.open_files])

    def both(self, call, arguments):
        """The results of the call on both tables; `arguments` makes its arguments from number and directory of the table."""
        return [getattr(calls, call)(*arguments(i, self.tables[i][1])) for i, calls in enumerate((self.kernel, self.memory))]

    def step(self, rng, where):
        call = rng.choice(CALLS)
        path, other = (rng.choice((b"", b"", b"/d")) + rng.choice(NAMES) for _ in range(2))
        pair = rng.choice(self.open_files) if self.open_files else (-1, -1)
        offset, size, content = rng.randrange(9000), rng.randrange(1, 9000), rng.randbytes(rng.randrange(6000))
        flags = rng.choice(FLAGS)
        arguments = {
            "open": lambda i, top: (top + path, flags),
            "unlink": lambda i, top: (top + path,),
            "rename": lambda i, top: (top + path, top + other),
            "is_at": lambda i, top: (pair[i], top + path),
            "pwrite": lambda i, top: (pair[i], content, offset),
            "pread": lambda i, top: (pair[i], size, offset),
            "ftruncate": lambda i, top: (pair[i], size),
            "fallocate": lambda i, top: (pair[i], offset, size),
        }.get(call, lambda i, top: (top + b"/d",) if call in ("mkdir", "rmdir", "list", "fsync_dir") else (pair[i],))
        one, other = self.both(call, arguments)
        if call == "open" and one >= 0 and other >= 0:
            self.open_files.append((one, other))
            return
        if call == "close" and one == 0:
            self.open_files.remove(pair)
        self.assertEqual(one, other, f"{call}, {where}")

    def test_same_results_whatever_is_called(self):
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        for number in range(5000):
            self.step(rng, f"step {number}, seed {seed}")
            if len(self.open_files) > 20:
                self.kernel.close(self.open_files[0][0])
                self.memory.close(self.open_files.pop(0)[1])

    def test_stores_are_writes(self):
        for files, top in self.tables:
            calls = Calls(files)
            fd = calls.open(top + b"/a", CREATE)
            calls.fallocate(fd, 0, 9000)
            self.assertEqual(calls.store(fd, b"one" * 10, 4090, 9000), 0)
            self.assertEqual(calls.pread(fd, 40, 4085), bytes(5) + b"one" * 10 + bytes(5))
            calls.close(fd)

    def test_zeros_are_written(self):
        for files, top in self.tables:
            calls = Calls(files)
            fd = calls.open(top + b"/a", CREATE)
            calls.pwrite(fd, b"1" * 20_000, 0)
            calls.close(fd)
            fd = calls.open(top + b"/a", os.O_RDWR | os.O_DIRECT)
            queue = 0
            for offset in (4096, 8192):
                result, queue = calls.zero(fd, offset, 4096, queue)
                self.assertEqual(result, 0)
                self.assertEqual(calls.zeroed(queue), 0)
            calls.zero_end(queue)
            calls.close(fd)
            fd = calls.open(top + b"/a", os.O_RDWR)
            self.assertEqual(calls.pread(fd, 20_000, 0), b"1" * 4096 + bytes(8192) + b"1" * (20_000 - 12_288))
            calls.close(fd)

    def test_zeros_that_are_refused(self):
        for calls in (self.kernel, self.memory):
            self.assertEqual(calls.zero(-1, 0, 4096, 0)[0], -errno.EBADF)

    def test_zeros_come_as_late_as_they_may(self):
        fd = self.memory.open(b"/a", CREATE)
        self.memory.pwrite(fd, b"1" * 8192, 0)
        _, queue = self.memory.zero(fd, 4096, 4096, 0)
        self.assertEqual(self.memory.pread(fd, 1, 4096), b"1")
        self.assertEqual(self.memory.zeroed(queue), 0)
        self.assertEqual(self.memory.pread(fd, 1, 4096), b"\0")

    def test_store_beyond_the_end_of_the_file(self):
        fd = self.kernel.open(self.tables[0][1] + b"/a", CREATE)
        self.kernel.fallocate(fd, 0, 100)
        self.assertEqual(self.kernel.store(fd, b"1", 5000, 9000), -errno.EIO)
        self.kernel.close(fd)

    def test_mapping_shows_later_writes_and_outlives_the_name(self):
        for files, top in self.tables:
            calls = Calls(files)
            fd = calls.open(top + b"/a", CREATE)
            calls.pwrite(fd, b"one", 0)
            mapping = Mapping(files, fd, 1 << 16)
            calls.pwrite(fd, b"two", 3)
            calls.unlink(top + b"/a")
            calls.close(fd)
            self.assertEqual(mapping.read(0, 6), b"onetwo")


class DiskCase(SynchronousTestCase):
    def setUp(self):
        self.files = CrashFiles()
        self.calls = Calls(self.files)

    def write(self, path, content, offset=0):
        fd = self.calls.open(path, CREATE)
        self.calls.pwrite(fd, content, offset)
        return fd

    def after(self, keep, grain=PAGE):
        """Path to content, after a loss of power."""
        left = self.files.after_power_loss(keep, grain)
        return {path: left.read(path) for path in left.paths()}


class PowerLossTest(DiskCase):
    def test_store_is_killed_in_the_middle_and_lost_like_a_write(self):
        fd = self.write(b"/a", b"....")
        self.calls.fdatasync(fd)
        self.calls.fsync_dir(b"/")
        killed = []
        self.files.watch = lambda call: killed.append(self.files.after_kill().read(b"/a"))
        self.calls.store(fd, b"1234", 0, 4)
        self.assertEqual(killed, [b"....", b"12.."])
        self.assertEqual(self.after(nothing)[b"/a"], b"....")
        self.assertEqual(self.after(everything)[b"/a"], b"1234")

    def test_content_and_name_are_durable_each_by_its_own_sync(self):
        named, synced = self.write(b"/named", b"1"), self.write(b"/synced", b"2")
        self.calls.fsync_dir(b"/")
        self.write(b"/lost", b"3")
        self.calls.fdatasync(synced)
        self.assertEqual(self.after(nothing), {b"/named": b"", b"/synced": b"2"})
        self.calls.fdatasync(named)
        self.assertEqual(self.after(nothing), {b"/named": b"1", b"/synced": b"2"})
        self.assertEqual(self.after(everything), {b"/named": b"1", b"/synced": b"2", b"/lost": b"3"})

    def test_every_subset_of_the_parts_of_a_write(self):
        fd = self.write(b"/a", b"-" * PAGE)
        self.calls.fsync_dir(b"/")
        self.calls.fdatasync(fd)
        self.calls.pwrite(fd, b"+" * PAGE, SECTOR)
        found = {self.after(lambda parts, number=number: number)[b"/a"] for number in range(8)}
        self.assertEqual(self.files.unsynced(), 3)  # the size, and what lies in the first page and in the second
        old, new, tail = b"-" * PAGE, b"-" * SECTOR + b"+" * (PAGE - SECTOR), b"+" * SECTOR
        self.assertEqual(found, {old, new, old + bytes(SECTOR), new + bytes(SECTOR), old + tail, new + tail})
        self.assertEqual(self.files.unsynced(SECTOR), 9)

    def test_size_grows_without_data(self):
        self.write(b"/a", b"x" * 100)
        self.calls.fsync_dir(b"/")
        self.assertEqual(self.after(lambda parts: 0b01), {b"/a": bytes(100)})

    def test_cut_that_is_lost_brings_the_bytes_back(self):
        fd = self.write(b"/a", b"0123456789")
        self.calls.fsync_dir(b"/")
        self.calls.fdatasync(fd)
        self.calls.ftruncate(fd, 4)
        self.calls.pwrite(fd, b"x", 4)
        self.assertEqual(self.after(nothing), {b"/a": b"0123456789"})
        self.assertEqual(self.after(lambda parts: 0b110), {b"/a": b"0123x56789"})
        self.assertEqual(self.after(everything), {b"/a": b"0123x"})

    def test_entries_of_a_directory_are_independent(self):
        for name in (b"/a", b"/b"):
            self.calls.fdatasync(self.write(name, name))
        self.calls.fsync_dir(b"/")
        self.calls.rename(b"/a", b"/c")
        self.calls.unlink(b"/b")
        found = [sorted(self.after(lambda parts, number=number: number)) for number in range(4)]
        self.assertEqual(found, [[b"/a", b"/b"], [b"/b", b"/c"], [b"/a"], [b"/c"]])

    def test_directory_that_is_lost_takes_its_files_along(self):
        self.calls.mkdir(b"/d")
        self.calls.fdatasync(self.write(b"/d/a", b"1"))
        self.calls.fsync_dir(b"/d")
        self.assertEqual(self.after(nothing), {})
        self.calls.fsync_dir(b"/")
        self.assertEqual(self.after(nothing), {b"/d/a": b"1"})

    def test_what_was_unsynced_before_a_kill_is_unsynced_after_it(self):
        self.write(b"/a", b"1")
        self.files = self.files.after_kill()
        self.assertEqual((self.after(nothing), self.after(everything)), ({}, {b"/a": b"1"}))

    def test_kill_leaves_what_the_kernel_knows_and_no_locks(self):
        fd = self.write(b"/a", b"1")
        self.assertEqual(self.calls.lock(fd), 0)
        left = self.files.after_kill()
        self.calls.pwrite(fd, b"2", 0)
        self.assertEqual(left.read(b"/a"), b"1")
        calls = Calls(left)
        self.assertEqual(calls.lock(calls.open(b"/a", os.O_RDWR)), 0)
        self.assertEqual(self.calls.lock(self.calls.open(b"/a", os.O_RDWR)), -errno.EAGAIN)


class FaultTest(DiskCase):
    def test_one_call_fails(self):
        fd = self.write(b"/a", b"")
        self.files.fail("pwrite", 2, errno.ENOSPC)
        self.assertEqual([self.calls.pwrite(fd, b"abcd", 0) for _ in range(3)], [4, -errno.ENOSPC, 4])

    def test_all_calls_that_change_something_fail(self):
        fd = self.write(b"/a", b"abcd")
        self.files.fail(None, 2, errno.EIO, forever=True)
        self.assertEqual(self.calls.fdatasync(fd), 0)
        self.assertEqual(self.calls.pwrite(fd, b"x", 0), -errno.EIO)
        self.assertEqual(self.calls.open(b"/b", CREATE), -errno.EIO)
        self.assertEqual((self.calls.pread(fd, 9, 0), self.calls.close(fd)), (b"abcd", 0))
        self.files.heal()
        self.assertGreater(self.calls.open(b"/b", CREATE), 0)

    def test_short_reads_and_writes(self):
        fd = self.write(b"/a", b"")
        self.files.fail("pwrite", 1, SHORT, forever=True)
        self.assertEqual([self.calls.pwrite(fd, b"abcd", 0), self.calls.pwrite(fd, b"x", 9)], [2, 1])
        self.files.fail("pread", 1, SHORT)
        self.assertEqual((self.calls.pread(fd, 2, 0), self.calls.pread(fd, 2, 0)), (b"a", b"ab"))

    def test_what_a_failed_sync_covered_never_reaches_the_disk(self):
        fd = self.write(b"/a", b"1")
        self.calls.fsync_dir(b"/")
        self.files.fail("fdatasync", 1, errno.EIO)
        self.assertEqual(self.calls.fdatasync(fd), -errno.EIO)
        self.calls.pwrite(fd, b"2", 1)
        self.assertEqual(self.files.retries, 0)
        self.assertEqual(self.calls.fdatasync(fd), 0)
        self.assertEqual(self.files.retries, 1)
        self.assertEqual((self.calls.pread(fd, 2, 0), self.after(everything)[b"/a"]), (b"12", b"\x002"))

    def test_end_of_the_process_takes_nothing_along(self):
        fd = self.write(b"/a", b"1")
        self.files.fail(None, 1, errno.EIO, forever=True)
        self.assertEqual((self.calls.fdatasync(fd), self.calls.fsync_dir(b"/")), (-errno.EIO, -errno.EIO))
        self.assertEqual(self.after(everything), {b"/a": b"1"})

    def test_watch_is_told_before_each_change(self):
        seen = []
        self.files.watch = lambda call: seen.append((call, self.files.paths()))
        fd = self.write(b"/a", b"1")
        self.calls.pread(fd, 1, 0)
        self.calls.unlink(b"/a")
        self.assertEqual(seen, [("open", []), ("pwrite", [b"/a"]), ("unlink", [b"/a"])])
        self.assertEqual(self.files.mutations, 3)
        self.assertEqual(self.files.calls, {"open": 1, "pwrite": 1, "pread": 1, "unlink": 1})
