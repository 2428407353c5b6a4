"""Damage in odd places: the tail of another segment, swapped segments, wrong clocks, keys that collide, marks."""

import gc
import os
import struct

import crc32c

import kvcore
from kvcore import manifest
from tests.probe import HandFiles
from tests.support import at_once
from tests.test_recovery import HEADER, SMALL, CrashCase, forge, records, seed_of

# Two pairs of keys that share all 40 bits of the hash in use when the secret is 16 zero bytes.
COLLIDING = ((b"k98999", b"k179368"), (b"k50934", b"k2053718"))
RECENT = 1700000000000 << 20


class MarkTest(CrashCase):
    def test_a_mark_does_not_vouch_for_what_was_written_after_the_sync_began(self):
        store = self.open()
        store.put(b"a", b"1")
        synced = os.path.getsize(self.segment_paths()[0])
        job = store.sync_job()
        store.put(b"b", b"2")
        job.run()
        job.finish()
        store.put(b"c", b"3")
        store.close()
        marks = [struct.unpack("<QI", value) for _, _, flags, _, value in records(self.read(self.segment_paths()[0]))
                 if flags == 0x10]
        self.assertEqual(marks, [(1, synced)])


class ImageTest(CrashCase):
    """An image of the index may name records that came after it was begun: it proves that they were on the disk."""

    def crash(self, spoil):
        """Kill a store of which only the image proves that the last records were on the disk; spoil: what each becomes."""
        store = kvcore.open(self.dir, fsync="no", executor=at_once)
        store.put(b"before", b"1")
        steps = store.checkpoint_steps()
        for number, job in enumerate(steps):
            if number == 0:
                for i in range(20):
                    store.put(b"k%d" % i, b"value")
            job.run()
            job.finish()
        del store, job, steps
        gc.collect()
        path = self.segment_paths()[0]
        content = bytearray(self.read(path))
        for offset, size, *_ in reversed(records(content)[-20:]):
            content[offset:offset + size] = spoil(content[offset:offset + size])
        with open(path, "wb") as f:
            f.write(content)

    def check_tail(self, spoil):
        self.crash(spoil)
        for _ in range(2):
            store = kvcore.open(self.dir, fsync="no", executor=at_once)
            self.assertTrue(store.recovery["checkpoint"])
            self.assertEqual(store.get(b"before"), b"1")
            damaged = 0
            for i in range(20):
                try:
                    self.assertIsNone(store.get(b"k%d" % i))  # one that is not in the image is a torn tail
                except kvcore.CorruptionError:
                    damaged += 1
            self.assertGreater(damaged, 0)
            self.assertGreater(store.recovery["damaged_ranges"], 0)
            self.assertLess(store.stats()["dead_bytes"], 1000)
            del store
            gc.collect()

    def test_wrong_bits_in_records_that_only_the_image_proves(self):
        self.check_tail(lambda record: record[:-1] + b"?")

    def test_zeros_instead_of_records_that_only_the_image_proves(self):
        self.check_tail(lambda record: bytes(len(record)))

    def test_records_that_only_the_image_proves_and_that_are_gone_are_told(self):
        self.crash(lambda record: b"")
        store = self.open()
        self.assertEqual(dict(store.items()), {b"before": b"1"})
        self.assertEqual((store.recovery["checkpoint"], store.recovery["damaged_ranges"]), (False, 1))
        self.assertIn("bytes are missing", store.recovery["messages"][0])

    def test_keys_that_only_the_image_knows_can_be_written_and_deleted(self):
        self.crash(lambda record: bytes(len(record)))
        store = self.open()
        damaged = []
        for i in range(20):
            try:
                store.get(b"k%d" % i)
            except kvcore.CorruptionError:
                damaged.append(b"k%d" % i)
        put, deleted = damaged[:2]
        store.put(put, b"healed")
        self.assertTrue(store.delete(deleted))
        self.assertEqual((store.get(put), store.get(deleted)), (b"healed", None))


class CutBelowTheImageTest(CrashCase):
    def test_what_an_image_proves_to_have_been_there_is_told_when_it_is_gone(self):
        """At the end of a record, where a torn tail is nothing to speak of."""
        self.write([(b"key%02d" % i, b"value") for i in range(50)])
        path = self.segment_paths()[0]
        place = self.read(path).index(b"key30") - 20
        os.truncate(path, place)
        store = self.open()
        self.assertEqual((len(store), store.recovery["damaged_ranges"]), (30, 1))
        self.assertIn("bytes are missing", store.recovery["messages"][0])


class TornTailElsewhereTest(CrashCase):
    """Only the last segment has a torn tail: bad bytes at the end of another one are damage, and nothing is cut there."""

    def setUp(self):
        super().setUp()
        jobs = []
        store = self.open(segment_size=SMALL, executor=jobs.append)
        for job in jobs:
            job.run()
            job.finish()
        jobs.clear()
        self.pairs = [(b"k%03d" % i, os.urandom(1000)) for i in range(90)]
        for key, value in self.pairs:
            store.put(key, value)
        self.keys_written = [key for key, _ in self.pairs]
        self.files = {name: self.read(os.path.join(self.dir, name)) for name in os.listdir(self.dir)}
        for job in jobs:
            job.run()
            job.finish()
        store.close()
        self.sealed = {name: self.read(os.path.join(self.dir, name)) for name in os.listdir(self.dir)}

    def bring_back(self, files):
        for name in os.listdir(self.dir):
            if not os.path.isdir(os.path.join(self.dir, name)):
                os.unlink(os.path.join(self.dir, name))
        for name, content in files.items():
            self.damage(os.path.join(self.dir, name), content)

    def check(self, files):
        first = files["0000000001.seg"]
        offset, size, _, key, _ = records(first)[-1]
        bad = first[:offset + size - 3] + b"???" + first[offset + size:]
        self.bring_back({**files, "0000000001.seg": bad})
        contents, damaged, report = self.reopened(segment_size=SMALL)
        self.assertEqual((damaged, report["torn_bytes"], report["damaged_ranges"]), ({key}, 0, 1))
        self.assertEqual(contents, {k: v for k, v in self.pairs if k != key})
        self.assertEqual(self.read(self.segment_paths()[0])[:len(bad.rstrip(b"\0"))], bad.rstrip(b"\0"))

    def test_full_segment_that_is_not_sealed_yet(self):
        self.check(self.files)

    def test_sealed_segment(self):
        self.check(self.sealed)

    def test_spare_that_is_there_already_is_used_before_another_is_made(self):
        self.bring_back(self.files)
        header = bytearray(self.files["0000000002.seg"][:60])
        header[16:24] = (3).to_bytes(8, "little")
        header += crc32c.crc32c(bytes(header)).to_bytes(4, "little")
        self.damage(os.path.join(self.dir, "0000000003.seg"), bytes(header))
        path = os.path.join(self.dir, manifest.NAME)
        store_id, secret, _, lines = manifest.decode(self.read(path), path)
        self.assertEqual([line["state"] for line in lines], ["open", "open"])
        self.damage(path, manifest.encode(store_id, secret, 4, [*lines, {"id": 3, "state": "open"}]))
        jobs = []
        store = self.open(segment_size=SMALL, executor=jobs.append)
        for i in range(60):
            store.put(b"more%d" % i, bytes(1000))
        # The second one became full while the first was being sealed.
        self.assertEqual(len(self.segment_paths()), 3)
        while jobs:
            job = jobs.pop(0)
            job.run()
            job.finish()
        self.assertEqual(len(self.segment_paths()), 4)
        self.assertEqual(store.sealed_ids(), [1, 2])
        store.close()
        more = {b"more%d" % i: bytes(1000) for i in range(60)}
        self.assertEqual(self.contents(segment_size=SMALL), {**dict(self.pairs), **more})

    def test_writing_goes_on_in_the_newest_segment_with_records(self):
        self.bring_back(self.files)
        store = self.open(segment_size=SMALL)
        store.put(b"new", b"1")
        store.flush()
        second = self.read(self.segment_paths()[1])
        self.assertEqual(records(second)[-1][3:], (b"new", b"1"))


class SegmentIdTest(CrashCase):
    def test_next_number_of_the_manifest_is_not_believed_below_that_of_a_segment(self):
        self.write([(b"k%d" % i, bytes(1000)) for i in range(100)], segment_size=SMALL)
        path = os.path.join(self.dir, manifest.NAME)
        store_id, secret, _, segments = manifest.decode(self.read(path), path)
        self.damage(path, manifest.encode(store_id, secret, 1, segments))
        before = {name: self.read(name) for name in self.segment_paths()[:1]}
        store = self.open(segment_size=SMALL)
        for i in range(100):
            store.put(b"more%d" % i, bytes(1000))
        store.close()
        self.assertEqual({name: self.read(name) for name in before}, before)
        self.assertEqual(len(self.contents(segment_size=SMALL)), 200)

    def test_two_segments_of_the_store_in_each_others_place(self):
        self.write([(b"k%d" % i, bytes(1000)) for i in range(200)], segment_size=SMALL)
        first, second = self.segment_paths()[:2]
        one, two = self.read(first), self.read(second)
        self.damage(first, two)
        self.damage(second, one)
        self.assertIn("move it elsewhere", str(self.assertRaises(kvcore.CorruptionError, kvcore.open, self.dir)))
        self.assertEqual((self.read(first), self.read(second)), (two, one))

    def test_damaged_header(self):
        self.write([(b"a", b"1")])
        path = self.segment_paths()[0]
        good = self.read(path)
        for offset in range(HEADER):
            self.damage(path, good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1:])
            self.assertIn("is damaged", str(self.assertRaises(kvcore.CorruptionError, kvcore.open, self.dir)))

    def ids(self):
        return [int(os.path.basename(path)[:10]) for path in self.segment_paths()]

    def test_numbers_go_on_above_the_manifests_next_one(self):
        self.write([(b"a", b"1")])
        path = os.path.join(self.dir, manifest.NAME)
        store_id, secret, _, segments = manifest.decode(self.read(path), path)
        self.damage(path, manifest.encode(store_id, secret, 50, segments))
        self.write([(b"k%d" % i, bytes(1000)) for i in range(100)], segment_size=SMALL)
        self.assertEqual(self.ids(), [1, 2, 50])

    def test_numbers_go_on_above_an_unlisted_segment(self):
        self.write([(b"a", b"1")])
        self.damage(os.path.join(self.dir, "0000000009.seg"), b"")
        self.write([(b"k%d" % i, bytes(1000)) for i in range(100)], segment_size=SMALL)
        self.assertEqual(self.ids(), [1, 2, 10])

    def test_name_that_is_no_number_of_32_bits_is_foreign(self):
        self.write([(b"a", b"1")])
        self.damage(os.path.join(self.dir, "9999999999.seg"), b"")
        self.assertIn("9999999999.seg", str(self.assertRaises(kvcore.StorageError, kvcore.open, self.dir)))


class SearchTest(CrashCase):
    def damaged_value(self, value):
        """Open a store whose record `host`, with this value, has lost its length, and `last` stands behind it."""
        content = self.read(self.segment_paths()[0])
        seed = seed_of(content)
        host = bytearray(forge(seed, RECENT, b"host", value(seed)))
        host[12:19] = b"\xff" * 7
        self.damage(self.segment_paths()[0], content + bytes(host) + forge(seed, RECENT + 1, b"last", b"1"))
        return self.open(), len(host)

    def test_record_of_an_implausible_time_is_not_taken_for_one(self):
        self.write([(b"a", b"1")])
        early, late = 1500000000000 << 20, 9000000000000 << 20
        store, size = self.damaged_value(
            lambda seed: b"x" * 9 + forge(seed, early, b"ghost", b"1") + forge(seed, late, b"ghost", b"2"))
        self.assertIsNone(store.get(b"ghost"))
        self.assertEqual(store.recovery["damaged_bytes"], size)

    def test_clock_before_1970(self):
        files = HandFiles()
        files.now = -5000
        for _ in range(2):
            store = self.open(files=files)
            store.put(b"a", b"1", ttl=10)
            self.assertEqual(store.get(b"a"), b"1")
            store.close()
            self.forget_checkpoint()
        files.now = 1_800_000_000_000
        self.assertEqual(self.contents(files=files), {})

    def test_records_of_a_clock_that_was_wrong_are_not_cut(self):
        self.write([])
        path = self.segment_paths()[0]
        empty = self.read(path)
        seed = seed_of(empty)
        for base in (1000 << 20, 9000000000000 << 20):
            found = [forge(seed, base + i, b"k%d" % i, b"v") for i in range(5)]
            found[2] = found[2][:-1] + b"?"
            self.damage(path, empty + b"".join(found))
            self.keys_written = [b"k%d" % i for i in range(5)]
            contents, damaged, report = self.reopened()
            self.assertEqual(contents, {b"k%d" % i: b"v" for i in (0, 1, 3, 4)})
            self.assertEqual((damaged, report["torn_bytes"]), ({b"k2"}, 0))

    def test_records_behind_a_checkpoint_of_a_clock_that_was_wrong_are_not_cut(self):
        self.write([])
        path = self.segment_paths()[0]
        empty = self.read(path)
        base = 9000000000000 << 20
        found = [forge(seed_of(empty), base + i, b"k%d" % i, b"v") for i in range(5)]
        self.damage(path, empty + b"".join(found[:2]))
        self.open().close()
        with open(path, "ab") as f:
            f.write(found[2][:-1] + b"?" + found[3] + found[4])
        self.assertTrue(os.path.exists(os.path.join(self.dir, "index.ckpt")))
        self.keys_written = [b"k%d" % i for i in range(5)]
        contents, damaged, report = self.reopened()
        self.assertTrue(report["checkpoint"])
        self.assertEqual(contents, {b"k%d" % i: b"v" for i in (0, 1, 3, 4)})
        self.assertEqual((damaged, report["torn_bytes"]), ({b"k2"}, 0))

    def test_damaged_record_of_a_clock_that_was_wrong_does_not_let_the_older_value_through(self):
        self.write([])
        path = self.segment_paths()[0]
        empty = self.read(path)
        base = 9000000000000 << 20
        found = [forge(seed_of(empty), base + i, key, b"v%d" % i) for i, key in enumerate((b"k", b"other", b"k", b"last"))]
        found[2] = found[2][:4] + b"????????" + found[2][12:]
        self.damage(path, empty + b"".join(found))
        self.keys_written = [b"k", b"other", b"last"]
        contents, damaged, _ = self.reopened()
        self.assertEqual((contents, damaged), ({b"other": b"v1", b"last": b"v3"}, {b"k"}))

    def test_search_is_given_up_after_so_many_false_starts(self):
        self.write([(b"a", b"1")])
        lie = struct.pack("<IQI", 0, 1700000000000 << 20, 200_000) + (5).to_bytes(3, "little") + b"\0"
        store, size = self.damaged_value(lambda seed: lie * 20_000)
        # All up to the end is told as damaged, though a good record stands there: the bound was reached.
        self.assertGreater(store.recovery["damaged_bytes"], size)


class CollisionTest(CrashCase):
    """Keys with equal hashes, as far as the index knows them, are told apart by the log."""

    def setUp(self):
        super().setUp()
        self.write([])
        path = os.path.join(self.dir, manifest.NAME)
        store_id, _, next_id, segments = manifest.decode(self.read(path), path)
        self.damage(path, manifest.encode(store_id, bytes(16), next_id, segments))

    def test_each_has_its_own_value(self):
        store = self.open()
        for one, other in COLLIDING:
            store.put(one, b"one")
            self.assertIsNone(store.get(other))
            self.assertFalse(store.delete(other))
            store.put(other, b"other")
            self.assertEqual((store.get(one), store.get(other)), (b"one", b"other"))
        one, other = COLLIDING[0]
        self.assertTrue(store.delete(one))
        self.assertEqual((store.get(one), store.get(other)), (None, b"other"))
        before = dict(store.items())
        store.close()
        self.assertEqual(self.contents(), before)

    def test_writing_a_key_does_not_replace_a_damaged_other_one(self):
        one, other = COLLIDING[0]
        for first, second in ((one, other), (other, one)):
            store = self.open()
            store.put(first, b"first-value")
            store.put(second, b"second-value")
            path = self.segment_paths()[0]
            content = self.read(path)
            at = content.rindex(b"first-value") - len(first)
            self.damage(path, content[:at] + b"?" + content[at + 1:])
            self.assertRaises(kvcore.CorruptionError, store.get, first)
            store.put(second, b"2")
            self.assertEqual(store.get(second), b"2")
            self.assertRaises(kvcore.CorruptionError, store.get, first)
            self.damage(path, self.read(path).replace(b"?" + first[1:], first))
            self.assertEqual(store.get(first), b"first-value")
            store.close()


class DeadlineTest(CrashCase):
    def test_deleting_a_key_whose_deadline_is_damaged_heals_it(self):
        """Its wrong bits say that it expired long ago; that is not believed."""
        store = self.open()
        store.put(b"a", b"1", ttl=1000)
        path, = self.segment_paths()[:1]
        with open(path, "r+b") as f:
            f.seek(HEADER + 20)
            f.write(struct.pack("<Q", 1))
        self.assertRaises(kvcore.CorruptionError, store.get, b"a")
        self.assertTrue(store.delete(b"a"))
        self.assertIsNone(store.get(b"a"))
        store.close()
        self.assertEqual(self.contents(), {})


class SpaceTest(CrashCase):
    """Space taken ahead is given back: when a segment is sealed, and when the store is closed."""

    def test_files_end_with_their_last_record(self):
        store = self.open(segment_size=1 << 20)
        for i in range(3500):
            store.put(b"k%d" % i, b"v" * 1000)
        store.close()
        path = os.path.join(self.dir, manifest.NAME)
        sealed = [line for line in manifest.decode(self.read(path), path)[3] if line["state"] == "sealed"]
        self.assertEqual(len(sealed), 3)
        for line, segment in zip(sealed, self.segment_paths(), strict=False):
            self.assertEqual(os.path.getsize(segment), line["bytes"])
        self.assertEqual(self.read(self.segment_paths()[3])[-1:], b"v")
