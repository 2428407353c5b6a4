"""Checkpoints: opening with one, with a wrong one and without one gives the same store."""

import os
import random
import shutil

import crc32c

import kvcore
from kvcore.check import check
from tests.probe import HandFiles
from tests.support import StoreCase
from tests.test_recovery import SMALL


class CheckpointCase(StoreCase):
    def path(self):
        return os.path.join(self.dir, "index.ckpt")

    def fill(self, store, rng, model, steps):
        for _ in range(steps):
            key = b"key%d" % rng.randrange(400)
            if rng.random() < 0.3:
                self.assertEqual(store.delete(key), model.pop(key, None) is not None)
            else:
                model[key] = rng.randbytes(rng.choice((0, 10, 500)))
                store.put(key, model[key])

    def killed(self, store):
        """A copy of the directory as it is now, the store still open: what the end of the process leaves."""
        store.flush()
        target = os.path.abspath(self.mktemp())
        shutil.copytree(self.dir, target)
        return target

    def check(self, directory, model, checkpoint):
        store = kvcore.open(directory, fsync="no", segment_size=SMALL)
        try:
            self.assertEqual(store.recovery["checkpoint"], checkpoint)
            self.assertEqual((dict(store.items()), len(store)), (model, len(model)))
            stats = store.stats()
            self.assertEqual(stats["live_bytes"], sum(20 + len(k) + len(v) for k, v in model.items()))
            self.assertEqual(store.recovery["messages"], [])
        finally:
            store.close()


class CheckpointTest(CheckpointCase):
    def test_replay_is_only_what_came_after_it(self):
        rng, model = random.Random(11), {}
        store = self.open(segment_size=SMALL, autoflush=False)
        self.fill(store, rng, model, 3000)
        self.assertEqual((store.stats()["checkpoints"], store.stats()["checkpoint_at"]), (0, 0))
        store.checkpoint()
        stats = store.stats()
        self.assertEqual((stats["checkpoints"], stats["replay_bytes"]), (1, 0))
        self.assertEqual(stats["checkpoint_bytes"], os.path.getsize(os.path.join(self.dir, "index.ckpt")))
        self.assertLess(abs(stats["checkpoint_at"] - os.path.getmtime(os.path.join(self.dir, "index.ckpt"))), 600)
        self.fill(store, rng, model, 50)
        directory = self.killed(store)
        opened = kvcore.open(directory, fsync="no", segment_size=SMALL)
        self.assertLess(opened.recovery["records"], 60)
        self.assertTrue(20 * 50 < opened.recovery["bytes"] <= store.stats()["replay_bytes"])
        opened.close()
        self.check(directory, model, True)
        shutil.rmtree(directory)

    def test_same_store_with_any_checkpoint_and_none(self):
        rng, model = random.Random(12), {}
        store = self.open(segment_size=SMALL, autoflush=False)
        old = None
        for step in range(6):
            self.fill(store, rng, model, 700)
            directory = self.killed(store)
            if old is not None:
                with open(os.path.join(directory, "index.ckpt"), "wb") as f:
                    f.write(old)
            self.check(directory, model, old is not None or step > 1)
            store.checkpoint()
            if step % 2 == 0:
                with open(self.path(), "rb") as f:
                    old = f.read()
            self.fill(store, rng, model, 700)
            self.check(self.killed(store), model, True)
            directory = self.killed(store)
            os.unlink(os.path.join(directory, "index.ckpt"))
            self.check(directory, model, False)

    def test_partitions_copied_while_the_store_goes_on(self):
        """The image is fuzzy: writes, deletes and new segments between any two of its steps."""
        rng, model = random.Random(13), {}
        store = self.open(segment_size=SMALL, autoflush=False)
        self.fill(store, rng, model, 3000)
        store.flush()
        steps = store.checkpoint_steps()
        count = 0
        for job in steps:
            self.fill(store, rng, model, 400)
            store.flush()
            job.run()
            self.fill(store, rng, model, 400)
            job.finish()
            count += 1
        self.assertGreaterEqual(count, 3)
        self.check(self.killed(store), model, True)

    def test_killed_between_any_two_steps_of_writing_one(self):
        rng, model = random.Random(14), {}
        store = self.open(segment_size=SMALL, autoflush=False)
        self.fill(store, rng, model, 1000)
        store.checkpoint()
        self.fill(store, rng, model, 1000)
        store.flush()
        self.check(self.killed(store), model, True)
        for job in store.checkpoint_steps():
            self.check(self.killed(store), model, True)
            job.run()
            self.check(self.killed(store), model, True)
            job.finish()
        self.check(self.killed(store), model, True)

    def test_damaged_at_any_place_it_is_ignored(self):
        model = {}
        store = self.open(segment_size=SMALL)
        self.fill(store, random.Random(15), model, 300)
        store.close()
        with open(self.path(), "rb") as f:
            good = f.read()
        places = {*range(0, 120), *range(120, len(good), 97), len(good) - 1}
        for at in sorted(places):
            with open(self.path(), "wb") as f:
                f.write(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1:])
            self.check(self.dir, model, False)
        for size in (0, 1, 43, 44, 100, len(good) // 2, len(good) - 1):
            with open(self.path(), "wb") as f:
                f.write(good[:size])
            self.check(self.dir, model, False)

    def test_damaged_at_its_end_it_says_nothing_of_the_segments(self):
        store = self.open(segment_size=SMALL)
        for i in range(100):
            store.put(b"key%d" % i, bytes(1000))
        store.close()
        with open(self.path(), "r+b") as f:
            f.seek(-1, os.SEEK_END)
            f.write(b"?")
        store = self.open(segment_size=SMALL)
        for i in range(100):
            store.put(b"other%d" % i, bytes(1000))
        store.close()
        self.assertEqual(check(self.dir).damage, [])

    def parts(self):
        """What a store of some keys holds, the head of its image, and the parts of that."""
        model = {b"%d" % i: b"v" for i in range(1000)}
        store = self.open()
        for key, value in model.items():
            store.put(key, value)
        store.close()
        with open(self.path(), "rb") as f:
            content = f.read()
        parts, at = [], 44
        for size in (48, 16, *[16] * 256):
            end = at + 12 + size * int.from_bytes(content[at:at + 8], "little")
            parts.append(content[at:end])
            at = end
        self.assertEqual(at, len(content))
        return model, content[:44], parts

    def test_with_entries_that_cannot_be_it_is_ignored(self):
        """Although their checksum holds."""
        model, head, parts = self.parts()
        first, second = parts[2][8:24], parts[2][24:40]
        none = b"\xff" * 4
        for forged in (second + first, first[:4] + none + first[8:] + second, first[:8] + none + first[12:] + second,
                       first[:12] + bytes(4) + second):
            body = parts[2][:8] + forged + parts[2][40:-4]
            seed = int.from_bytes(head[40:44], "little") + 2
            part = body + crc32c.crc32c(body, seed).to_bytes(4, "little")
            with open(self.path(), "wb") as f:
                f.write(head + b"".join([*parts[:2], part, *parts[3:]]))
            opened = kvcore.open(self.dir, fsync="no")
            self.assertEqual((opened.recovery["checkpoint"], dict(opened.items())), (False, model))
            opened.close()

    def test_with_parts_in_each_others_place_it_is_ignored(self):
        model, head, parts = self.parts()
        sizes = [len(part) for part in parts]
        one, two = 2, sizes.index(sizes[2], 3)
        parts[one], parts[two] = parts[two], parts[one]
        with open(self.path(), "wb") as f:
            f.write(head + b"".join(parts))
        self.check(self.dir, model, False)

    def test_of_another_store_or_of_bytes_that_are_gone_it_is_ignored(self):
        store = self.open(segment_size=SMALL)
        store.put(b"theirs", b"1")
        store.close()
        with open(self.path(), "rb") as f:
            theirs = f.read()
        self.dir = os.path.abspath(self.mktemp())
        model = {}
        store = self.open(segment_size=SMALL)
        self.fill(store, random.Random(16), model, 100)
        store.put(b"last", b"x" * 100)
        store.close()
        with open(self.path(), "rb") as f:
            mine = f.read()
        with open(self.path(), "wb") as f:
            f.write(theirs)
        self.check(self.dir, {**model, b"last": b"x" * 100}, False)
        with open(self.path(), "wb") as f:
            f.write(mine)
        os.truncate(self.segment_paths()[0], os.path.getsize(self.segment_paths()[0]) - 1)
        opened = self.open(segment_size=SMALL)
        self.assertFalse(opened.recovery["checkpoint"])
        self.assertEqual(dict(opened.items()), model)

    def test_damage_behind_a_checkpoint_is_met_when_it_is_read(self):
        store = self.open()
        for i in range(20):
            store.put(b"key%02d" % i, b"value%02d" % i)
        store.close()
        path = self.segment_paths()[0]
        with open(path, "r+b") as f:
            content = f.read()
            f.seek(content.index(b"value07"))
            f.write(b"V")
        store = self.open()
        self.assertTrue(store.recovery["checkpoint"])
        self.assertRaises(kvcore.CorruptionError, store.get, b"key07")
        self.assertEqual(store.get(b"key08"), b"value08")

    def test_damage_right_behind_a_checkpoint_hides_what_it_hides_without_one(self):
        """The version of a record of which only a part was written looks older than those before it."""
        files = HandFiles()
        files.now = 1_800_000_000_000
        store = self.open(files=files)
        for value in (b"old", b"older"):  # the second one with a mark before it
            store.put(b"key", value)
            store.checkpoint()
        store.put(b"key", b"new")
        store.put(b"other", b"1")
        directory = self.killed(store)
        with open(os.path.join(directory, "0000000001.seg"), "r+b") as segment:
            segment.seek(segment.read().index(b"keynew") - 20)
            segment.write(bytes(11))
        for checkpoint in (True, False):
            opened = kvcore.open(directory, files=files)
            self.assertEqual(opened.recovery["checkpoint"], checkpoint)
            self.assertRaises(kvcore.CorruptionError, opened.get, b"key")
            self.assertEqual(opened.get(b"other"), b"1")
            opened.close()
            os.unlink(os.path.join(directory, "index.ckpt"))
        shutil.rmtree(directory)

    def test_torn_tail_behind_a_checkpoint_is_cut(self):
        store = self.open()
        store.put(b"a", b"1")
        store.checkpoint()
        store.put(b"b", b"2")
        directory = self.killed(store)
        path = os.path.join(directory, os.path.basename(self.segment_paths()[0]))
        os.truncate(path, os.path.getsize(path) - 1)
        opened = kvcore.open(directory, fsync="no")
        self.assertEqual((opened.recovery["checkpoint"], opened.recovery["damaged_ranges"]), (True, 0))
        self.assertGreater(opened.recovery["torn_bytes"], 0)
        self.assertEqual(dict(opened.items()), {b"a": b"1"})
        opened.close()

    def test_deadlines_are_in_it(self):
        files = HandFiles()
        files.now = 1_800_000_000_000
        store = self.open(files=files)
        store.put(b"a", b"1", ttl=100)
        store.put(b"b", b"1")
        store.close()
        files.now += 99_000
        store = self.open(files=files)
        self.assertTrue(store.recovery["checkpoint"])
        self.assertEqual(len(store), 2)
        files.now += 1_000
        self.assertEqual((len(store), list(store.keys())), (1, [b"b"]))
