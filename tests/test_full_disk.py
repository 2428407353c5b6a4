"""A real file system of a few MiB that fills up: values are refused, reads and deletes go on, space comes back by itself."""

import errno
import os
import re
import subprocess
import urllib.error
import urllib.request

from twisted.trial.unittest import SynchronousTestCase

import kvcore
from kvcore.crashfs import CrashFiles
from kvnet.client import Client, ClientError
from tests.daemon import Daemon
from tests.probe import HookedFiles
from tests.support import StoreCase
from tests.test_faults import file_of
from tests.test_recovery import SMALL

SIZE = 6 << 20
VALUE = os.urandom(1000)
TEXT = os.urandom(1500).hex().encode()


def mount(case, *words):
    """Mount what the words say for the time of a test, which is skipped where that is not allowed; return where (str)."""
    mounted = os.path.abspath(case.mktemp())
    os.makedirs(mounted)
    done = subprocess.run(["mount", *words, mounted], capture_output=True, text=True)
    if done.returncode != 0:
        case.skipTest(f"needs to mount: {done.stderr.strip()}")
    case.addCleanup(subprocess.run, ["umount", mounted], check=True)
    return mounted


def mount_tmpfs(case):
    return mount(case, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs")


def mount_ext4(case):
    """8 MiB in a file."""
    image = os.path.abspath(case.mktemp())
    os.makedirs(os.path.dirname(image), exist_ok=True)
    with open(image, "wb") as f:
        f.truncate(8 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        case.skipTest(f"needs mkfs.ext4: {error}")
    return mount(case, "-o", "loop", image)


class MountedCase(StoreCase):
    def setUp(self):
        super().setUp()
        self.dir = os.path.join(mount_tmpfs(self), "data")


class TmpfsTest(MountedCase):
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


class BackupTest(MountedCase):
    def test_no_room_for_the_backup(self):
        self.dir, small = os.path.abspath(self.mktemp()), os.path.dirname(self.dir)
        store = self.open(segment_size=1 << 20)
        for i in range(SIZE // len(VALUE) + 1):
            store.put(b"key %d" % i, VALUE)
        target = os.path.join(small, "backup")
        error = self.assertRaises(kvcore.StorageError, store.backup, target)
        self.assertEqual(error.errno, errno.ENOSPC)
        self.assertEqual(os.listdir(small), [])
        self.assertEqual((store.state, store.last_backup), ("ok", 0))


class ServerOnTmpfsTest(SynchronousTestCase):
    """A real server, asked what it says of itself."""

    mount = mount_tmpfs

    def setUp(self):
        self.dir = self.mount()
        self.daemon = Daemon(self.dir, "--segment-size=512KiB", "--data-dir=data", "--compression=off")
        # Before the cleanup that takes the file system away.
        self.addCleanup(self.daemon.kill)

    def get(self, path):
        """Status and text of a page of the monitoring port."""
        host, port = self.daemon.addresses["metrics"][0]
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def state(self):
        """The state that the metrics name."""
        found = re.findall(r'^kvstore_state\{state="(.+)"\} 1\.0$', self.get("metrics")[1], re.MULTILINE)
        self.assertEqual(len(found), 1)
        return found[0]

    def fill(self, client, first):
        """Write until that is refused; the number of keys that there are then."""
        for number in range(first, first + 2 * SIZE // len(TEXT)):
            try:
                client.write(b"key%d" % number, TEXT)
            except ClientError as error:
                self.assertIn("the server says error", str(error))
                return number
        raise AssertionError("the disk did not fill up")

    def test_values_are_refused_the_rest_goes_on_and_so_do_values_when_there_is_space(self):
        with Client("127.0.0.1", self.daemon.port) as client:
            with open(os.path.join(self.dir, "filler"), "wb") as f:
                f.write(bytes(SIZE // 3))
            self.assertEqual((self.state(), self.get("readyz")), ("ok", (200, "ok\n")))
            count = self.fill(client, 0)
            status, text = self.get("readyz")
            self.assertEqual((self.state(), status), ("full", 503))
            self.assertIn("full: the disk has no space left; values are refused", text)
            self.assertEqual(self.get("healthz")[0], 200)
            self.assertEqual(client.read(b"key1"), TEXT)
            client.delete(b"key0")
            # Somebody else makes room: seen without a write.
            os.unlink(os.path.join(self.dir, "filler"))
            while self.get("readyz")[0] != 200:
                pass
            count = self.fill(client, count)
            self.assertEqual(self.get("readyz")[0], 503)
            # The clients make room themselves.
            for number in range(1, count - 10):
                client.delete(b"key%d" % number)
            while self.get("readyz")[0] != 200:
                pass
            client.write(b"again", TEXT)
            self.assertEqual(self.state(), "ok")
            self.assertEqual(set(client.keys()), {b"again", *(b"key%d" % number for number in range(count - 10, count))})
        status, out, err = self.daemon.stop()
        self.assertEqual((status, err), (0, ""), out)
        self.assertIn("the store is full: the disk has no space left", out)


class ServerOnExt4Test(ServerOnTmpfsTest):
    mount = mount_ext4


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

    def test_a_delete_is_refused_when_what_the_reserve_leaves_is_not_enough(self):
        refused = set()
        store = self.open(files=self.refusing(refused))
        store.put(b"a", b"1")
        self.assertEqual(self.reserve(), 256 << 10)
        for refusals, left in ([("open", "RESERVE")], 256 << 10), ([], 64 << 10), ([], 64 << 10):
            refused.update([("pwrite", "0000000001.seg"), *refusals])
            self.assertRaises(kvcore.StorageError, store.delete, b"a")
            self.assertEqual((self.reserve(), store.state, store.get(b"a")), (left, "full", b"1"))
            refused.clear()
        self.assertTrue(store.delete(b"a"))
        store.close()
        self.assertEqual(self.contents(), {})

    def test_a_reserve_that_is_not_there_is_not_given_up(self):
        with self.open() as store:
            store.put(b"a", b"1")
        os.truncate(os.path.join(self.dir, "RESERVE"), 0)
        store = self.open(files=self.refusing({("fallocate", "RESERVE"), ("pwrite", "0000000001.seg")}))
        self.assertRaises(kvcore.StorageError, store.delete, b"a")
        self.assertEqual((self.reserve(), store.get(b"a")), (0, b"1"))

    def refusing(self, refused):
        """A file table that finds no space for these, each a call and the name of a file."""

        def hook(call, what):
            name = file_of(what) if isinstance(what, int) else os.path.basename(what.decode())
            return -errno.ENOSPC if (call, name) in refused else None

        return HookedFiles(hook)

    def test_space_is_looked_for_when_the_clock_has_jumped_back(self):
        self.dir = "/store"
        files = CrashFiles()
        files.fail("fallocate", 1, errno.ENOSPC, forever=True)
        store = self.open(files=files)
        self.assertRaises(kvcore.StorageError, store.put, b"a", b"1")
        files.heal()
        self.assertRaises(kvcore.StorageError, store.put, b"a", b"1")
        files.now -= 1
        store.put(b"a", b"1")
        self.assertEqual(store.state, "ok")

    def test_nothing_is_compacted_without_a_reserve(self):
        with self.open(segment_size=SMALL) as store:
            for i in range(400):
                store.put(b"k%d" % (i if i % 3 else 0), VALUE)
        os.truncate(os.path.join(self.dir, "RESERVE"), 0)
        self.full = True
        store = self.open(segment_size=SMALL, files=HookedFiles(self.hook))
        self.assertIsNone(store.maintenance())
        self.full = False
        self.assertIsNotNone(store.maintenance())

    def test_space_is_seen_without_a_write(self):
        store = self.open(files=HookedFiles(self.hook))
        self.full = True
        self.assertRaises(kvcore.StorageError, store.put, b"a", b"1")
        store.maintenance()
        self.assertEqual((store.state, self.reserve()), ("full", 256 << 10))
        self.full = False
        store.maintenance()
        self.assertEqual((store.state, self.reserve()), ("ok", 256 << 10))

    def test_compaction_does_not_begin_what_the_reserve_is_too_small_for(self):
        store = self.open(segment_size=1 << 20, compression=False, files=HookedFiles(self.hook))
        for i in range(4000):
            store.put(b"k%d" % i, VALUE)
        for i in range(0, 3500, 2):
            store.delete(b"k%d" % i)
        self.full = True
        self.assertRaises(kvcore.StorageError, store.put, b"a", b"1")
        self.assertIsNone(store.maintenance())
        self.assertEqual(self.reserve(), 256 << 10)
        self.full = False
        store.drive(store.maintenance())
        self.assertGreater(store.stats()["compaction_reclaimed_bytes"], 2 << 20)

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
