"""Space ahead of the log where a sync follows each flush: zeros that go to the disk while nobody waits for them."""

import errno
import os

import kvcore
from kvcore.crashfs import CrashFiles
from tests.probe import WrittenFiles
from tests.support import StoreCase, at_once

SEGMENT = b"/store/0000000001.seg"
ENOUGH = 2_000_000  # bytes written at first
STEP = 4 * 4096  # taken ahead at a time then, or a page less: at most one part in 128


class AheadCase(StoreCase):
    def open_crash(self, files=None, **options):
        self.files = CrashFiles() if files is None else files
        self.written = {}
        store = kvcore.open("/store", fsync="always", files=self.files, executor=at_once, **options)
        self.addCleanup(store.close)
        return store

    def write(self, store, key, size, value=b"v"):
        self.written[key] = value * size
        store.put(key, self.written[key])

    def grow(self, store, size=ENOUGH):
        """Large records: so much."""
        for i in range(size // 100_000):
            self.write(store, b"large%d" % i, 100_000)

    def begin(self, store):
        """Small ones, until zeros are under way that nobody has asked after."""
        begun = self.files.calls.get("zero", 0)
        for i in range(100):
            self.write(store, b"small%d" % i, 1000)
            if self.files.calls.get("zero", 0) > begun:
                return
        self.fail("no zeros are written")

    def check(self, store):
        self.assertEqual((store.state, dict(store.items()) == self.written), ("ok", True))
        for files in (self.files.after_kill(), self.files.after_power_loss(lambda parts: 0)):
            with kvcore.open("/store", files=files, executor=at_once) as opened:
                self.assertEqual(opened.recovery["damaged_ranges"], 0)
                self.assertTrue(dict(opened.items()) == self.written)


class ZerosTest(AheadCase):
    def test_small_groups_are_written_over_zeros(self):
        store = self.open_crash()
        self.grow(store)
        reserved = self.files.calls["fallocate"]
        for i in range(100):
            self.write(store, b"k%d" % i, 1000)
        self.assertTrue(100_000 // STEP <= self.files.calls["zero"] <= 100_000 // (STEP - 4096) + 2)
        self.assertEqual(self.files.calls["fallocate"], reserved + self.files.calls["zero"])
        self.assertNotIn("store", self.files.calls)  # after a sync each page costs a fault
        content = self.files.read(SEGMENT)
        ahead = len(content) - len(content.rstrip(b"\0"))
        self.assertTrue(4096 < ahead <= 2 * STEP)
        self.check(store)

    def test_a_small_store_takes_little(self):
        store = self.open_crash()
        for i in range(1000):
            self.write(store, b"k%d" % i, 1000)
        self.assertGreater(self.files.calls["zero"], 0)
        self.assertLess(len(self.files.read(SEGMENT)), 1_030_000 * 66 / 64)
        self.check(store)

    def test_a_flush_that_reaches_into_zeros_under_way_waits_for_them(self):
        store = self.open_crash()
        self.grow(store)
        self.begin(store)
        self.write(store, b"reaches", 3 * STEP)
        self.check(store)
        self.begin(store)
        self.write(store, b"reaches further", 3 * STEP)
        self.write(store, b"small", 10)
        self.check(store)

    def test_zeros_that_are_under_way_when_the_segment_is_full(self):
        store = self.open_crash(segment_size=2_500_000)
        self.grow(store)
        self.begin(store)
        self.write(store, b"next", 1_000_000)
        self.assertIn(b"/store/0000000002.seg", self.files.paths())
        self.begin(store)
        self.check(store)
        self.assertLessEqual(len(self.files.read(SEGMENT)), 2_500_000)

    def test_none_are_written_beyond_the_segment(self):
        store = self.open_crash(segment_size=2_100_000)
        self.grow(store)
        size = 0
        for i in range(150):
            self.write(store, b"k%d" % i, 1000)
            size = max(size, len(self.files.read(SEGMENT)))
        self.assertIn(b"/store/0000000002.seg", self.files.paths())
        self.assertTrue(2_096_000 < size <= 2_100_000)
        self.check(store)

    def test_large_groups_have_none(self):
        store = self.open_crash()
        self.grow(store, 2 * ENOUGH)
        self.assertNotIn("zero", self.files.calls)
        self.check(store)

    def test_only_with_always(self):
        self.open_crash().close()
        store = kvcore.open("/store", fsync="no", files=self.files, executor=at_once)
        self.grow(store)
        for i in range(100):
            store.put(b"k%d" % i, b"v" * 1000)
            store.sync()
        self.assertNotIn("zero", self.files.calls)
        store.close()

    def test_a_flush_ends_with_a_page(self):
        """One that is written in part would have to be read before, as it is not in memory."""
        files = WrittenFiles()
        store = self.open(fsync="always", files=files)
        for i in range(1000):
            store.put(b"k%d" % i, b"v" * 1000)
        ends = [offset + n for name, offset, n in files.written if name.endswith("0000000001.seg")]
        self.assertEqual({end % 4096 for end in ends[-100:]}, {0})
        store.close()
        self.assertEqual(self.contents(), {b"k%d" % i: b"v" * 1000 for i in range(1000)})

    def test_close_lets_go_of_the_file_and_cuts_it(self):
        before = len(os.listdir("/proc/self/fd"))
        store = self.open(fsync="always")
        for i in range(1000):
            store.put(b"k%d" % i, b"v" * 1000)
        path = self.segment_paths()[0]
        opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        self.assertEqual(opened.count(path), 2)
        store.close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        with open(path, "rb") as segment:
            self.assertFalse(segment.read().endswith(b"\0"))


class FaultTest(AheadCase):
    """Without zeros a sync takes longer, that is all."""

    def refused(self, call, code, forever=True):
        """A store for which this fails from now on, after some more has been written."""
        store = self.open_crash()
        self.grow(store)
        self.files.fail(call, 1, code, forever)
        for i in range(100):
            self.write(store, b"k%d" % i, 1000)
        self.files.heal()
        self.check(store)
        return store

    def test_a_file_system_that_has_no_direct_writes(self):
        for code in (errno.EINVAL, errno.EMFILE):
            self.refused("open", code)
            self.assertNotIn("zero", self.files.calls)

    def test_a_kernel_that_has_no_asynchronous_ones(self):
        for code in (errno.ENOSYS, errno.EAGAIN):
            self.refused("zero", code)
            self.assertEqual(self.files.calls["zero"], 1)
            # Instead space is taken as for those who are not synced each time.
            content = self.files.read(SEGMENT)
            self.assertLess(len(content.rstrip(b"\0")), len(content))

    def test_zeros_that_the_disk_did_not_take(self):
        self.refused("zeroed", errno.EIO)
        self.assertEqual(self.files.calls["zero"], 1)

    def test_a_disk_that_is_full(self):
        store = self.refused("fallocate", errno.ENOSPC)
        self.assertNotIn("zero", self.files.calls)
        self.begin(store)
        self.check(store)

    def test_a_flush_that_fails_beside_them(self):
        store = self.open_crash()
        self.grow(store)
        self.begin(store)
        self.files.fail("pwrite", 1, errno.ENOSPC)
        self.assertRaises(kvcore.StorageError, store.put, b"refused", b"1")
        for i in range(3):
            self.begin(store)
            self.write(store, b"reaches%d" % i, 3 * STEP)
            self.check(store)
