"""Pages that go under the mapping: a sealed segment is cut short under an open store. Reading them is an error, no more."""

import os
import signal
import urllib.request

from twisted.trial.unittest import SynchronousTestCase

import kvcore
from kvnet.client import Client, ClientError
from tests.daemon import Daemon
from tests.test_recovery import SMALL, CrashCase, records

LEFT = 8192  # bytes of the segment that stay


def halves(path):
    """The keys of a segment that stay, and those that go, when it is cut at LEFT bytes."""
    with open(path, "rb") as f:
        found = records(f.read())
    return ([key for offset, size, _, key, _ in found if key and offset + size <= LEFT],
            [key for offset, size, _, key, _ in found if key and offset + size > LEFT])


class LibraryTest(CrashCase):
    def setUp(self):
        super().setUp()
        self.pairs = {b"k%03d" % i: os.urandom(1000) for i in range(200)}
        self.store = self.open(segment_size=SMALL, compression=False)
        for key, value in self.pairs.items():
            self.store.put(key, value)
        self.path = self.segment_paths()[0]
        self.kept, self.gone = halves(self.path)
        self.assertGreater(len(self.gone), 40)
        os.truncate(self.path, LEFT)

    def test_reads(self):
        for key in self.gone:
            self.assertRaises(kvcore.CorruptionError, self.store.get, key)
        self.assertEqual(self.store.stats()["damaged_reads"], len(self.gone))
        for key in self.pairs.keys() - set(self.gone):
            self.assertEqual(self.store.get(key), self.pairs[key])

    def test_writing_heals(self):
        for key in self.gone:
            self.store.put(key, b"new")
        self.assertEqual(
            {key: self.store.get(key) for key in self.pairs}, self.pairs | dict.fromkeys(self.gone, b"new"))

    def test_scan(self):
        """Whatever else it does, it tells, and gives no wrong value."""
        seen = {}
        items = self.store.items()
        with self.assertRaises(kvcore.CorruptionError):
            for key, value in items:
                seen[key] = value
        self.assertTrue(seen.items() <= self.pairs.items())

    def test_compaction_leaves_it(self):
        self.store.drive(self.store.compaction_of(self.store.sealed_ids()))
        self.assertTrue(os.path.exists(self.path))
        for key in self.pairs.keys() - set(self.gone):
            self.assertEqual(self.store.get(key), self.pairs[key])
        for key in self.gone:
            self.assertRaises(kvcore.CorruptionError, self.store.get, key)


class WindowTest(CrashCase):
    """The segment that is written is cut short under a store that writes through a window."""

    def test_writing_goes_on(self):
        store = self.open()
        pairs = {b"k%04d" % i: os.urandom(200) for i in range(1000)}
        for key, value in pairs.items():
            store.put(key, value)
        path = self.segment_paths()[0]
        _, gone = halves(path)
        os.truncate(path, LEFT)
        for key in gone:
            store.put(key, b"new")
        store.close()
        store = self.open()
        self.assertEqual(dict(store.items()), pairs | dict.fromkeys(gone, b"new"))


class ServerTest(SynchronousTestCase):
    def test_server_lives(self):
        directory = os.path.abspath(self.mktemp())
        os.makedirs(directory)
        daemon = Daemon(directory, "--segment-size=64KiB", "--data-dir=data")
        self.addCleanup(daemon.kill)
        pairs = {b"k%03d" % i: b"%d" % i * 400 for i in range(200)}
        with Client("127.0.0.1", daemon.port) as client:
            for key, value in pairs.items():
                client.write(key, value)
            path = os.path.join(directory, "data", "0000000001.seg")
            _, gone = halves(path)
            os.truncate(path, LEFT)
            for key in gone:
                self.assertIn("the server says error", str(self.assertRaises(ClientError, client.read, key)))
            for key in pairs.keys() - set(gone):
                self.assertEqual(client.read(key), pairs[key])
            client.write(gone[0], b"new")
            self.assertEqual(client.read(gone[0]), b"new")
            client.delete(gone[1])
            self.assertEqual(client.status(), "well going our operation")
        host, port = daemon.addresses["metrics"][0]
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=60) as answer:
            self.assertIn(b"\nkvstore_damaged_reads_total %.1f\n" % len(gone), answer.read())
        status, out, err = daemon.stop(signal.SIGTERM)
        self.assertEqual((status, err), (0, ""), out)
