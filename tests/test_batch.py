"""Atomic batches: all of one or nothing, whatever cuts it short."""

import os
import shutil
import struct

import kvcore
from tests.support import StoreCase
from tests.test_recovery import HEADER, SMALL, forge, records, seed_of

OPERATIONS = 5


class BatchTest(StoreCase):
    def test_everything_happens_at_the_end(self):
        store = self.open()
        store.put(b"a", b"old")
        with store.batch() as b:
            b.put(b"a", b"new")
            b.put(b"b", b"1")
            b.delete(b"b")
            b.delete(b"absent")
            b.put(b"c", b"", ttl=1000)
            self.assertEqual(dict(store.items()), {b"a": b"old"})
        self.assertEqual(dict(store.items()), {b"a": b"new", b"c": b""})
        store.close()
        self.assertEqual(self.contents(), {b"a": b"new", b"c": b""})

    def test_an_error_in_the_block_leaves_everything_as_it_was(self):
        store = self.open()
        store.put(b"a", b"old")
        with self.assertRaises(ZeroDivisionError), store.batch() as b:
            b.put(b"a", b"new")
            raise ZeroDivisionError
        with self.assertRaises(kvcore.UsageError), store.batch() as b:
            b.put(b"a", b"new")
            b.put(b"", b"no such key")
        with self.assertRaises(kvcore.UsageError), store.batch() as b:
            b.put(b"a", b"new", ttl=-1)
        self.assertEqual(dict(store.items()), {b"a": b"old"})

    def test_empty_batch_writes_nothing(self):
        store = self.open()
        size = os.path.getsize(self.segment_paths()[0])
        with store.batch():
            pass
        self.assertEqual(os.path.getsize(self.segment_paths()[0]), size)

    def test_a_batch_lies_in_one_segment(self):
        store = self.open(segment_size=SMALL)
        expected = {}
        for i in range(30):
            with store.batch() as b:
                for j in range(10):
                    b.put(b"k%d.%d" % (i, j), bytes(1000))
                    expected[b"k%d.%d" % (i, j)] = bytes(1000)
        with store.batch() as b:  # larger than a segment
            for j in range(100):
                b.put(b"large%d" % j, bytes(1000))
                expected[b"large%d" % j] = bytes(1000)
        store.close()
        for path in self.segment_paths():
            with open(path, "rb") as f:
                flags = [flags for _, _, flags, _, _ in records(f.read())]
            self.assertFalse(flags and flags[-1] & 8, path)
        self.assertEqual(self.contents(), expected)


class CutTest(StoreCase):
    def setUp(self):
        super().setUp()
        store = self.open()
        store.put(b"before", b"1")
        store.put(b"k0", b"old")
        store.close()
        self.path = self.segment_paths()[0]
        self.start = os.path.getsize(self.path)
        store = self.open()
        with store.batch() as b:
            for i in range(OPERATIONS):
                b.put(b"k%d" % i, b"new%d" % i)
            b.delete(b"before")
        store.close()
        with open(self.path, "rb") as f:
            self.content = f.read()
        self.old = {b"before": b"1", b"k0": b"old"}
        self.new = {b"k%d" % i: b"new%d" % i for i in range(OPERATIONS)}

    def opened_with(self, content):
        with open(self.path, "wb") as f:
            f.write(content)
        self.forget_checkpoint()
        return self.contents()

    def test_cut_at_every_byte(self):
        for cut in range(self.start, len(self.content)):
            self.assertEqual(self.opened_with(self.content[:cut]), self.old, cut)
            self.assertEqual(os.path.getsize(self.path), self.start)
        self.assertEqual(self.opened_with(self.content), self.new)

    def test_any_part_lost_before_it_was_known_to_be_on_the_disk(self):
        """Unsynced pages reach the disk in any order: a hole anywhere, with good records behind it."""
        content = self.content + forge(seed_of(self.content), 1700000000000 << 20, b"later", b"1")
        found = [(offset, size) for offset, size, *_ in records(self.content) if offset >= self.start]
        self.assertEqual(len(found), OPERATIONS + 2)
        for first in range(len(found)):
            for last in range(first, len(found)):
                lost, end = found[first][0], sum(found[last])
                contents = self.opened_with(content[:lost] + bytes(end - lost) + content[end:])
                self.assertEqual(contents, {**self.old, b"later": b"1"}, (first, last))

    def test_part_of_a_batch_never_counts_also_when_a_later_sync_covers_it(self):
        """Opened after the loss, written to, sealed and compacted: what is left of the batch is on the disk then."""
        later = forge(seed_of(self.content), 1700000000000 << 20, b"later", b"1")
        original = self.dir
        for lost, size in [(offset, size) for offset, size, *_ in records(self.content) if offset >= self.start]:
            self.dir = os.path.abspath(self.mktemp())
            shutil.copytree(original, self.dir)
            self.path = self.segment_paths()[0]
            self.opened_with(self.content[:lost] + bytes(size) + self.content[lost + size:] + later)
            store = self.open(segment_size=SMALL)
            for i in range(70):
                store.put(b"filler%d" % i, bytes(1000))
            store.close()
            self.forget_checkpoint()
            store = self.open(segment_size=SMALL)
            for _ in range(2):
                self.assertEqual([store.get(key) for key in (b"before", b"k0", b"k1")], [b"1", b"old", None], lost)
                store.compact()
            store.close()

    def test_records_of_a_batch_that_was_synced_count_one_by_one(self):
        """Behind a mark a bad record is damage, not an unfinished batch: the good ones were acknowledged."""
        head = self.content[:HEADER]
        prefix = forge(seed_of(head), 1 << 60, b"", struct.pack("<QI", 1, 10_000), flags=0x10)
        batch = bytearray(self.content[self.start:])
        batch[22] ^= 0xFF
        batch[23] ^= 0xFF
        with open(self.path, "wb") as f:
            f.write(head + prefix + bytes(batch))
        self.forget_checkpoint()
        store = self.open()
        self.assertRaises(kvcore.CorruptionError, store.get, b"k0")
        self.assertEqual([store.get(b"k%d" % i) for i in range(1, OPERATIONS)], list(self.new.values())[1:])

    def test_records_of_a_batch_that_a_later_mark_proves_count_one_by_one(self):
        """Nothing older comes back in the place of what was acknowledged and synced."""
        mark = forge(seed_of(self.content), 1700000000000 << 20, b"", struct.pack("<QI", 1, len(self.content)), flags=0x10)
        for number, (offset, size, _, key, _) in enumerate(records(self.content)[2:2 + OPERATIONS]):
            bad = bytearray(self.content + mark)
            bad[offset + size - 1] ^= 1
            with open(self.path, "wb") as f:
                f.write(bad)
            self.forget_checkpoint()
            store = self.open()
            self.assertRaises(kvcore.CorruptionError, store.get, key)
            found = [store.get(b"k%d" % i) for i in range(OPERATIONS) if i != number]
            self.assertEqual(found, [b"new%d" % i for i in range(OPERATIONS) if i != number])
            self.assertIsNone(store.get(b"before"))
            self.assertEqual(store.recovery["damaged_ranges"], 1)
            store.close()


class CutAfterCompactionTest(StoreCase):
    """The segments that a compaction made have higher numbers than the one being written; they prove nothing about it."""

    def setUp(self):
        super().setUp()
        store = self.open(segment_size=SMALL)
        for i in range(200):
            store.put(b"filler%d" % (i % 50), os.urandom(1000))
        store.compact()
        store.put(b"last", b"1")
        self.old = dict(store.items())
        store.close()
        files = {name: self.read(name) for name in os.listdir(self.dir)}
        store = self.open(segment_size=SMALL)
        with store.batch() as b:
            for i in range(OPERATIONS):
                b.put(b"key%d" % i, b"torn")
        store.close()
        self.name = next(name for name in files if name.endswith(".seg") and self.read(name) != files[name])
        self.start = len(files[self.name])
        self.content = self.read(self.name)
        self.put_back(files)

    def read(self, name):
        with open(os.path.join(self.dir, name), "rb") as f:
            return f.read()

    def put_back(self, files):
        for name, content in files.items():
            with open(os.path.join(self.dir, name), "wb") as f:
                f.write(content)

    def check(self, before):
        self.assertLess(self.name, max(os.path.basename(path) for path in self.segment_paths()))
        for cut in range(self.start, len(self.content), 7):
            before()
            self.put_back({self.name: self.content[:cut]})
            store = self.open(segment_size=SMALL)
            self.assertEqual(store.recovery["damaged_ranges"], 0, cut)
            self.assertEqual(dict(store.items()), self.old, cut)
            store.close()

    def test_with_its_checkpoint(self):
        self.check(lambda: None)

    def test_without_a_checkpoint(self):
        self.check(self.forget_checkpoint)
