"""`kvstore backup` and `kvstore restore`: what they print, how they end, and beside a server under load."""

import os
import shutil
import socket
import sys
import threading
import urllib.request

import kvcore
from kvcore.backup import backup
from kvcore.restore import restore
from tests.daemon import Daemon, run
from tests.test_backup import KEYS, NOTE, BackupCase
from tests.test_check import snapshot
from tests.test_recovery import SMALL

WINDOW = 32  # commands in flight on a connection of a Counter


class RestoreTest(BackupCase):
    def setUp(self):
        super().setUp()
        self.pairs = {b"k%03d" % i: os.urandom(1000) for i in range(150)}
        self.write(self.pairs.items(), segment_size=SMALL)
        backup(self.dir, self.target)
        self.restored = os.path.abspath(self.mktemp())

    def test_all_is_there_and_the_backup_as_it_was(self):
        before = snapshot(self.target)
        done = restore(self.target, self.restored)
        self.assertEqual(snapshot(self.target), before)
        self.assertEqual(done.keys, 150)
        self.assertEqual(self.opened(self.restored), self.pairs)
        for name in os.listdir(self.restored):
            self.assertEqual(os.stat(os.path.join(self.restored, name)).st_nlink, 1, name)

    def test_damaged_backup_is_refused(self):
        path = os.path.join(self.target, "0000000003.seg")
        content = bytearray(self.read(path))
        content[1000] ^= 1
        self.damage(path, bytes(content))
        error = self.assertRaises(kvcore.CorruptionError, restore, self.target, self.restored)
        self.assertIn("is damaged (0000000003.seg: ", str(error))
        self.assertFalse(os.path.exists(self.restored))

    def test_backup_without_its_manifest_is_refused(self):
        os.unlink(os.path.join(self.target, "MANIFEST"))
        self.assertRaises(kvcore.StorageError, restore, self.target, self.restored)
        self.assertFalse(os.path.exists(self.restored))

    def test_target_that_is_not_empty(self):
        self.assertRaises(kvcore.UsageError, restore, self.target, self.dir)
        self.assertEqual(self.contents(), self.pairs)


class CommandTest(BackupCase):
    def setUp(self):
        super().setUp()
        self.work = os.path.dirname(self.dir)
        os.makedirs(self.work, exist_ok=True)

    def command(self, *words):
        return run(self.work, sys.executable, "-m", "kvnet", *words)

    def assertFails(self, result, *parts):
        status, out, err = result
        self.assertEqual((status, out), (1, ""), err)
        self.assertRegex(err, r"\Akvstore: [^\n]+\n\Z")
        for part in parts:
            self.assertIn(part, err)

    def test_backup_and_restore(self):
        self.write([(b"a", b"1"), (b"b", b"2")])
        size = os.path.getsize(self.segment_paths()[0])
        self.assertEqual(
            self.command("backup", self.dir, self.target),
            (0, f"1 segments, {size} bytes in {self.target}, 0 of them linked\n", ""))
        restored = os.path.abspath(self.mktemp())
        self.assertEqual(
            self.command("restore", self.target, restored), (0, f"2 keys, {size} bytes in {restored}\n", ""))
        self.assertEqual(self.opened(restored), {b"a": b"1", b"b": b"2"})

    def test_failures_are_one_line_and_status_1(self):
        self.write([(b"a", b"1")])
        os.mkdir(self.target)
        self.assertFails(self.command("backup", self.target, self.target + "-2"), "cannot open", "MANIFEST")
        self.assertFails(self.command("restore", self.target, self.target + "-2"), "holds no store")
        self.assertFails(self.command("backup", self.dir, self.dir), "is inside")
        self.assertFails(self.command("backup", self.dir, os.path.join(self.work, "no", "where")), "cannot create directory")
        open(os.path.join(self.target, "mine"), "w").close()
        self.assertFails(self.command("backup", self.dir, self.target), "is not empty")
        self.assertEqual(os.listdir(self.target), ["mine"])

    def test_a_segment_that_is_dropped_while_sizes_are_added_up(self):
        self.write([(b"a", b"1")])
        os.symlink("nowhere", os.path.join(self.dir, ".0000000002.seg"))  # as far as stat() can tell
        self.assertEqual(self.command("backup", self.dir, self.target)[::2], (0, ""))

    def test_of_a_running_server_under_load(self):
        """Each backup holds the counter of each connection up to one step, and all that was acknowledged before it began."""
        daemon = Daemon(self.work, "--segment-size=64KiB", "--data-dir=" + self.dir)
        self.addCleanup(daemon.kill)
        counters = [Counter(number, daemon.port) for number in range(3)]
        for counter in counters:
            counter.start()
        for counter in counters:
            counter.begun.wait(60)
        for _ in range(5):
            before = [counter.acknowledged for counter in counters]
            status, _, err = self.command("backup", self.dir, self.target)
            after = [counter.acknowledged for counter in counters]
            self.assertEqual((status, err), (0, ""))
            contents = self.opened()
            for counter, low, high in zip(counters, before, after, strict=True):
                count = counter.check(contents)
                self.assertTrue(low <= count <= high + WINDOW, (low, count, high))
            shutil.rmtree(self.target)
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{daemon.addresses['metrics'][0][1]}/metrics", timeout=30).read()
        noted = int(self.read(os.path.join(self.dir, NOTE)))
        values = dict(line.split() for line in metrics.splitlines() if line.startswith(b"kvstore_last_backup"))
        self.assertEqual({name: float(value) for name, value in values.items()}, {
            b"kvstore_last_backup_timestamp_seconds": noted})
        for counter in counters:
            counter.stop()
        self.assertEqual([counter.wrong for counter in counters], [[], [], []])
        self.assertEqual(daemon.stop()[0], 0)


class Counter(threading.Thread):
    """A connection that writes 0, 1, 2, ... to its own keys, in turn, pipelined."""

    def __init__(self, number, port):
        super().__init__(daemon=True)
        self.name_of = b"c%d-" % number
        self.acknowledged = 0
        self.begun = threading.Event()
        self.wrong = []
        self._ended = threading.Event()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)

    def run(self):
        sent = 0
        with self._socket, self._socket.makefile("rb") as replies:
            while not self._ended.is_set():
                for n in range(sent, sent + WINDOW):
                    self._socket.sendall(b"write %s%d|%d %s\r" % (self.name_of, n % KEYS, n, b"v" * (n % 3000)))
                sent += WINDOW
                said = replies.read(8 * WINDOW)
                if said != b"success\r" * WINDOW:
                    self.wrong.append(said)
                    break
                self.acknowledged = sent
                self.begun.set()

    def check(self, contents):
        """How many of the steps `contents` holds; raises AssertionError when it is not one state of the counter."""
        found = {int(key[len(self.name_of):]): value for key, value in contents.items() if key.startswith(self.name_of)}
        numbers = sorted(int(value.split()[0]) for value in found.values())
        count = numbers[-1] + 1
        assert numbers == list(range(max(0, count - KEYS), count)), numbers
        for place, value in found.items():
            number = int(value.split()[0])
            assert (number % KEYS, value) == (place, b"%d " % number + b"v" * (number % 3000)), (place, value)
        return count

    def stop(self):
        self._ended.set()
        self.join(60)
