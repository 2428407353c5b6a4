"""A real file system of a few MiB that fills up: values are refused, reads and deletes go on, space comes back by itself."""

import errno
import os
import subprocess

import kvcore
from tests.probe import HookedFiles
from tests.support import StoreCase
from tests.test_faults import file_of
from tests.test_recovery import SMALL

SIZE = 6 << 20
VALUE = os.urandom(1000)


class TmpfsTest(StoreCase):
    def setUp(self):
        super().setUp()
        mounted = os.path.abspath(self.mktemp())
        os.mkdir(mounted)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", mounted], capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest(f"needs to mount a tmpfs: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", mounted], check=True)
        self.dir = os.path.join(mounted, "data")

    def fill(self, store):
        model = {}
        for i in range(SIZE // len(VALUE)):
            key = b"key %d" % i
            try:
                store.put(key, VALUE)
            except kvcore.StorageError as error:
                self.assertEqual(error.errno, errno.ENOSPC)
                self.assertIn("No space left", str(error))
                return model
            model[key] = VALUE
        raise AssertionError("the disk did not fill up")

    def test_values_are_refused_and_deleting_makes_room(self):
        store = self.open(segment_size=1 << 20)
        model = self.fill(store)
        self.assertEqual(store.state, "full")
        self.assertEqual(dict(store.items()), model)
        for key in list(model)[:-10]:
            self.assertTrue(store.delete(key), key)
            del model[key]
        self.assertEqual(store.state, "full")
        # Others fill the disk as well.
        with open(os.path.join(os.path.dirname(self.dir), "filler"), "wb", buffering=0) as f, self.assertRaises(OSError):
            while f.write(bytes(4096)) == 4096:
                pass
        self.assertRaises(kvcore.StorageError, store.put, b"refused", b"while only deletes may use what is left")
        while (steps := store.maintenance()) is not None:
            store.drive(steps)
        self.assertGreater(store.stats()["compaction_reclaimed_bytes"], SIZE // 2)
        self.assertEqual(store.state, "ok")
        store.put(b"again", VALUE)
        model[b"again"] = VALUE
        self.assertEqual(dict(store.items()), model)
        store.close()
        self.assertEqual(self.contents(), model)

class ReserveTest(StoreCase):
    def setUp(self):
        super().setUp()
        self.full = self.no_checkpoints = False

    def hook(self, call, what):
        """Only what the reserve leaves is free."""
        if self.full and (call == "fallocate" or (call == "pwrite" and self.reserve() == 256 << 10)):
            return -errno.ENOSPC
        if self.no_checkpoints and call == "pwrite" and file_of(what).startswith("index.ckpt"):
            return -errno.ENOSPC
        return None

    def reserve(self):
        return os.path.getsize(os.path.join(self.dir, "RESERVE"))

    def test_the_reserve_goes_to_a_delete_and_comes_back_with_the_space(self):
        store = self.open(files=HookedFiles(self.hook))
        store.put(b"a", b"1")
        store.put(b"b", b"1")
        self.assertEqual(self.reserve(), 256 << 10)
        self.full = True
        self.assertRaises(kvcore.StorageError, store.put, b"c", b"1")
        self.assertEqual(self.reserve(), 256 << 10)
        self.assertTrue(store.delete(b"a"))
        self.assertEqual(self.reserve(), 64 << 10)
        # There is room for a value now, but it is not for values.
        self.assertRaises(kvcore.StorageError, store.put, b"c", b"1")
        self.assertEqual(store.state, "full")
        self.full = False
        store.maintenance()
        self.assertEqual(store.state, "ok")
        self.assertEqual(self.reserve(), 256 << 10)
        store.put(b"c", b"1")
        store.close()
        self.assertEqual(self.contents(), {b"b": b"1", b"c": b"1"})

    def test_a_store_opened_on_a_full_disk_serves_reads_and_deletes(self):
        store = self.open()
        store.put(b"a", b"1")
        store.put(b"b", b"1")
        store.close()
        os.truncate(os.path.join(self.dir, "RESERVE"), 0)
        self.full = True
        store = self.open(files=HookedFiles(self.hook))
        self.assertEqual((store.state, store.get(b"a")), ("full", b"1"))
        self.assertRaises(kvcore.StorageError, store.put, b"c", b"1")
        self.assertTrue(store.delete(b"a"))
        store.close()
        self.assertEqual(self.contents(), {b"b": b"1"})

    def test_no_room_for_a_checkpoint_is_no_reason_to_keep_dead_space(self):
        store = self.open(segment_size=SMALL, files=HookedFiles(self.hook))
        for i in range(400):
            store.put(b"k%d" % (i % 50), VALUE)
        store.checkpoint()
        self.no_checkpoints = True
        store.drive(store.compaction_of(store.sealed_ids()))
        self.assertGreater(store.stats()["compaction_reclaimed_bytes"], 4 * SMALL)
        self.assertNotIn("index.ckpt", os.listdir(self.dir))
        self.assertNotIn("index.ckpt.tmp", os.listdir(self.dir))
        store.close()
        self.assertEqual(self.contents(), {b"k%d" % i: VALUE for i in range(50)})
