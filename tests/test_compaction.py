"""Compaction: space comes back, and nothing else changes, whatever is written or goes wrong meanwhile."""

import errno
import os
import random
import resource
import shutil

import kvcore
from kvcore.crashfs import CrashFiles
from tests.probe import HandFiles
from tests.support import StoreCase
from tests.test_recovery import SMALL, records

OPTIONS = {"segment_size": SMALL}


class CompactionCase(StoreCase):
    """Stores that leave maintenance to the test."""

    def open(self, **options):
        return super().open(**{**OPTIONS, "autoflush": False, **options})

    def fill(self, store, model, rng, steps, keys=300, deletes=0.3):
        for _ in range(steps):
            key = b"key%d" % rng.randrange(keys)
            if rng.random() < deletes:
                self.assertEqual(store.delete(key), model.pop(key, None) is not None)
            else:
                model[key] = rng.randbytes(rng.choice((0, 30, 600)))
                store.put(key, model[key])
        store.flush()

    def killed(self):
        """A copy of the directory, as the end of the process leaves it."""
        target = os.path.abspath(self.mktemp())
        shutil.copytree(self.dir, target)
        return target

    def check_killed(self, model):
        """What is on the disk now opens to the model, with the checkpoint and without."""
        directory = self.killed()
        for _ in range(2):
            store = kvcore.open(directory, fsync="no", **OPTIONS)
            self.assertEqual((dict(store.items()), store.recovery["messages"]), (model, []))
            store.close()
            if os.path.exists(os.path.join(directory, "index.ckpt")):
                os.unlink(os.path.join(directory, "index.ckpt"))
        shutil.rmtree(directory)

    def disk_bytes(self):
        return sum(os.path.getsize(path) for path in self.segment_paths())


class SpaceTest(CompactionCase):
    def test_dead_space_comes_back_and_the_contents_stay(self):
        store, model, rng = self.open(), {}, random.Random(17)
        self.fill(store, model, rng, 6000)
        before = self.disk_bytes()
        store.compact()
        live = sum(20 + len(k) + len(v) for k, v in model.items())
        self.assertEqual(dict(store.items()), model)
        self.assertLess(self.disk_bytes(), live * 1.06 + 1000)
        self.assertGreater(before, 3 * self.disk_bytes())
        stats = store.stats()
        self.assertGreater(stats["compaction_reclaimed_bytes"], stats["compaction_written_bytes"])
        self.assertGreater(stats["compaction_seconds"], 0)
        self.assertEqual((stats["compaction_running"], stats["live_bytes"]), (False, live))
        self.check_killed(model)
        store.compact()
        self.assertEqual(store.stats()["compactions"], stats["compactions"])
        store.close()
        self.assertEqual(self.contents(), model)

    def test_everything_deleted_leaves_almost_nothing(self):
        store, model, rng = self.open(), {}, random.Random(18)
        self.fill(store, model, rng, 2000, deletes=0)
        for key in list(model):
            store.delete(key)
        store.compact()
        self.assertLess(self.disk_bytes(), 1000)
        self.assertEqual(len(store), 0)
        store.close()
        self.assertEqual(self.contents(), {})

    def test_a_library_does_it_by_itself_while_it_is_written_to(self):
        store, model, rng = StoreCase.open(self, segment_size=SMALL, executor=None), {}, random.Random(19)
        while store.stats()["compaction_reclaimed_bytes"] < 1_000_000:
            self.fill(store, model, rng, 2000)
        self.assertEqual(dict(store.items()), model)
        store.close()
        self.assertEqual(self.contents(), model)

    def test_many_small_segments_become_few(self):
        store, model = self.open(), {}
        self.fill(store, model, random.Random(29), 3000, keys=100_000, deletes=0)
        before = len(store.sealed_ids())
        self.assertGreater(before, 8)
        store.close()
        store = self.open(segment_size=8 * SMALL)
        while (steps := store.maintenance()) is not None:
            store.drive(steps)
        self.assertLess(len(store.sealed_ids()), before)
        self.assertEqual(dict(store.items()), model)

    def test_dead_space_in_the_segment_that_is_written_on_comes_back_when_idle(self):
        store = self.open(segment_size=64 << 20, compression=False)
        value = os.urandom(300_000)
        for used in (1, 2):
            store.put(b"a", value)
            self.assertIsNone(store.maintenance(idle=True), used)
        store.put(b"a", value)
        store.drive(store.maintenance(idle=True))
        self.assertLess(self.disk_bytes(), 2 * len(value))
        self.assertEqual(dict(store.items()), {b"a": value})

    def test_nothing_to_do(self):
        store, model = self.open(), {}
        self.assertIsNone(store.maintenance())
        self.assertIsNone(store.maintenance(idle=True))
        self.fill(store, model, random.Random(20), 100, keys=10_000, deletes=0)
        self.assertIsNone(store.maintenance(idle=True))


class TombstoneTest(CompactionCase):
    def test_deleted_stays_deleted_while_an_older_record_is_anywhere(self):
        """Any subset, in any order: the older put, the tombstone and what lies between are in different segments."""
        rng = random.Random(21)
        for attempt in range(12):
            self.dir = os.path.abspath(self.mktemp())
            store = self.open()
            model = {}
            for generation in range(4):
                for i in range(60):
                    key = b"k%d" % i
                    if (i + generation) % 3 == 0:
                        store.delete(key)
                        model.pop(key, None)
                    else:
                        model[key] = b"%d" % generation + bytes(500)
                        store.put(key, model[key])
                store.flush()
            for _ in range(3):
                sealed = store.sealed_ids()
                chosen = rng.sample(sealed, rng.randrange(1, len(sealed) + 1)) if sealed else []
                store.drive(store.compaction_of(chosen))
                self.assertEqual(dict(store.items()), model, attempt)
                self.check_killed(model)
            store.close()

    def test_expired_record_goes_on_hiding_older_ones(self):
        files = HandFiles()
        files.now = 1_800_000_000_000
        store = self.open(files=files)
        store.put(b"a", b"older" + bytes(1000))
        for i in range(100):
            store.put(b"fill%d" % i, bytes(1000))
        store.put(b"a", b"newer", ttl=10)
        for i in range(100):
            store.put(b"more%d" % i, bytes(1000))
        store.flush()
        files.now += 20_000
        second = store.sealed_ids()[1:]
        store.drive(store.compaction_of(second))
        self.assertIsNone(store.get(b"a"))
        store.close()
        self.forget_checkpoint()
        store = self.open(files=files)
        self.assertIsNone(store.get(b"a"))
        store.drive(store.compaction_of(store.sealed_ids()))
        self.assertIsNone(store.get(b"a"))
        store.close()
        found = [key for path in self.segment_paths() for _, _, _, key, _ in self.records_of(path)]
        self.assertNotIn(b"a", found)

    def records_of(self, path):
        with open(path, "rb") as f:
            return records(f.read())

    def test_tombstones_go_when_nothing_older_is_left(self):
        store = self.open()
        for i in range(2000):
            store.put(b"k%d" % i, b"v")
            store.delete(b"k%d" % i)
        store.compact()
        tombstones = [r for path in self.segment_paths() for r in self.records_of(path) if r[2] & 1]
        self.assertEqual(tombstones, [])

    def test_tombstones_of_long_keys_go_while_there_is_no_rest(self):
        store = self.open()
        for i in range(200):
            store.put(b"stays%d" % i, os.urandom(1000))
        for i in range(500):
            key = (b"k%d" % (i % 20)).ljust(8000, b"-")
            store.put(key, b"v")
            store.delete(key)
            store.flush()
            if (steps := store.maintenance()) is not None:
                store.drive(steps)
        self.assertLess(self.disk_bytes(), 20 * SMALL)


class MeanwhileTest(CompactionCase):
    def test_writes_between_any_two_steps(self):
        for seed in range(6):
            self.dir = os.path.abspath(self.mktemp())
            store, model, rng = self.open(), {}, random.Random(seed)
            self.fill(store, model, rng, 3000)
            steps = store.compaction_of(store.sealed_ids())
            for job in steps:
                self.fill(store, model, rng, 60)
                job.run()
                self.fill(store, model, rng, 60)
                job.finish()
                if rng.random() < 0.2:
                    self.assertEqual(dict(store.items()), model)
            self.assertEqual(dict(store.items()), model)
            self.check_killed(model)
            store.close()
            self.assertEqual(self.contents(), model)

    def test_scans_go_on_over_it(self):
        store, model, rng = self.open(), {}, random.Random(22)
        self.fill(store, model, rng, 3000)
        scans = [store.items() for _ in range(3)]
        seen = [[next(scan) for _ in range(10 * i)] for i, scan in enumerate(scans, 1)]
        store.compact()
        for scan, begun in zip(scans, seen, strict=True):
            self.assertEqual(begun + list(scan), sorted(model.items()))

    def test_killed_between_any_two_steps(self):
        store, model, rng = self.open(), {}, random.Random(23)
        self.fill(store, model, rng, 3000)
        store.checkpoint()
        self.fill(store, model, rng, 300)
        for job in store.compaction_of(store.sealed_ids()):
            self.check_killed(model)
            job.run()
            self.check_killed(model)
            job.finish()
        self.check_killed(model)

    def test_killed_at_any_step_while_the_checkpoint_is_older_than_the_sources(self):
        """Their records are then neither in its image nor, once they are dropped, replayed: only the next one has them."""
        for seed in range(3):
            self.dir = os.path.abspath(self.mktemp())
            store, model, rng = self.open(), {}, random.Random(seed)
            self.fill(store, model, rng, 600, keys=5000, deletes=0)
            before = store.sealed_ids()
            store.checkpoint()
            self.fill(store, model, rng, 1500, keys=1000)
            for job in store.compaction_of(set(store.sealed_ids()) - set(before)):
                self.fill(store, model, rng, 150, keys=1000)  # a new segment now and then, and so a new manifest
                job.run()
                job.finish()
                self.check_killed(model)
            self.check_killed(model)
            store.close()

    def test_left_in_the_middle_by_a_clean_close(self):
        for stop in range(1, 12):
            self.dir = os.path.abspath(self.mktemp())
            store, model, rng = self.open(), {}, random.Random(24)
            self.fill(store, model, rng, 2000)
            for number, job in enumerate(store.compaction_of(store.sealed_ids())):
                job.run()
                job.finish()
                if number == stop:
                    break
            store.close()
            opened = self.open()
            self.assertTrue(opened.recovery["checkpoint"], stop)
            self.assertEqual(dict(opened.items()), model)
            opened.close()

    def test_deleted_after_it_was_copied_and_before_the_crash(self):
        """The copy is in a segment that the checkpoint does not cover; the tombstone is covered."""
        store, model, rng = self.open(), {}, random.Random(25)
        self.fill(store, model, rng, 3000)
        steps = store.compaction_of(store.sealed_ids())
        for job in steps:
            job.run()
            job.finish()
            for key in list(model)[:3]:
                store.delete(key)
                del model[key]
            store.flush()
            self.check_killed(model)


class TroubleTest(CompactionCase):
    def test_one_at_a_time(self):
        store, model, rng = self.open(), {}, random.Random(27)
        self.fill(store, model, rng, 3000)
        ids = store.sealed_ids()
        first, late = store.compaction_of(ids), store.compaction_of(ids)
        job = next(first)
        self.assertRaises(kvcore.UsageError, next, store.compaction_of(ids))
        job.run()
        store.flush()
        job.finish()
        store.drive(first)
        store.drive(late)  # chosen before, what it was to compact is gone
        self.assertEqual(dict(store.items()), model)
        store.close()
        self.assertEqual(self.contents(), model)

    def test_a_job_that_still_runs_when_its_run_is_dropped(self):
        """The next run has its own memory."""
        store, model, rng = self.open(), {}, random.Random(27)
        self.fill(store, model, rng, 3000)
        ids = store.sealed_ids()
        store.drive(store.compaction_of(ids[:1]))  # so that there is memory to be used again
        dropped, next_one = store.compaction_of(ids[-1:]), store.compaction_of(ids[1:])
        late = next(dropped)
        dropped.close()
        for job in next_one:
            late.run()
            job.run()
            job.finish()
        self.assertFalse(set(ids) & set(store.sealed_ids()))
        self.assertEqual(dict(store.items()), model)
        store.close()
        self.assertEqual(self.contents(), model)

    def limit(self, size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    def test_no_space_at_any_point(self):
        for size in (0, 50, 1000, 20_000):
            self.dir = os.path.abspath(self.mktemp())
            store, model, rng = self.open(), {}, random.Random(26)
            self.fill(store, model, rng, 3000, keys=3000)
            self.limit(size)
            self.assertRaises(kvcore.StorageError, store.drive, store.compaction_of(store.sealed_ids()))
            self.assertEqual(store.state, "ok")
            self.assertEqual(dict(store.items()), model, size)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            self.check_killed(model)
            self.fill(store, model, rng, 300)
            store.compact()
            self.check_killed(model)
            store.close()
            self.assertEqual(self.contents(), model)

    def test_no_space_for_the_checkpoint_alone(self):
        """Without one that covers the copies the sources have to stay."""
        store, model, rng = self.open(), {}, random.Random(28)
        self.fill(store, model, rng, 600, keys=5000, deletes=0)
        before = store.sealed_ids()
        store.checkpoint()
        self.fill(store, model, rng, 1500, keys=1000, deletes=0)
        copied = False
        for job in store.compaction_of(set(store.sealed_ids()) - set(before)):
            if copied:
                self.limit(6000)
            job.run()
            job.finish()
            copied = copied or type(job).__name__ == "OutputSyncJob"
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self.assertTrue(copied)
        self.check_killed(model)
        store.compact()
        self.check_killed(model)

    def test_damaged_record_is_neither_dropped_nor_copied_blindly(self):
        store, model, rng = self.open(), {}, random.Random(27)
        self.fill(store, model, rng, 2000)
        store.close()
        path = self.segment_paths()[1]
        with open(path, "r+b") as f:
            content = f.read()
            offset, size, _, key, value = next(
                r for r in records(content) if len(r[4]) > 100 and model.get(r[3]) == r[4])
            f.seek(offset + size - 1)
            f.write(bytes([content[offset + size - 1] ^ 1]))
        store = self.open()
        store.compact()
        self.assertTrue(os.path.exists(path))
        self.assertRaises(kvcore.CorruptionError, store.get, key)
        del model[key]
        self.assertEqual({k: store.get(k) for k in model}, model)
        store.close()
        self.forget_checkpoint()
        store = self.open()
        self.assertRaises(kvcore.CorruptionError, store.get, key)
        self.assertEqual({k: store.get(k) for k in model}, model)
        store.put(key, b"healed")
        self.assertEqual(dict(store.items()), {**model, key: b"healed"})


    def large(self):
        """A store with a sealed segment in which a record is larger than what compaction reads at a time."""
        store = self.open(segment_size=1 << 20)
        model = {b"small": b"1", b"large": os.urandom(600_000), b"other": os.urandom(600_000)}
        store.put(b"dead", os.urandom(300_000))
        for key, value in model.items():
            store.put(key, value)
        store.delete(b"dead")
        store.flush()
        self.assertEqual(store.sealed_ids(), [1])
        return store, model

    def test_record_larger_than_what_is_read_at_a_time(self):
        store, model = self.large()
        store.drive(store.compaction_of([1]))
        self.assertNotIn(1, store.sealed_ids())
        self.assertEqual(dict(store.items()), model)
        self.check_killed(model)

    def test_large_record_whose_length_is_damaged_under_the_store(self):
        store, model = self.large()
        path = self.segment_paths()[0]
        with open(path, "r+b") as f:
            offset = next(r[0] for r in records(f.read()) if r[3] == b"large")
            f.seek(offset + 15)
            f.write(b"\x01")
        store.drive(store.compaction_of([1]))
        self.assertTrue(os.path.exists(path))
        self.assertRaises(kvcore.CorruptionError, store.get, b"large")
        self.assertEqual((store.get(b"small"), store.get(b"other")), (model[b"small"], model[b"other"]))


class CompressionTest(CompactionCase):
    def test_values_are_compressed_when_that_saves_a_tenth(self):
        text = b'{"pizza": "margherita", "price": 42, "toppings": ["cheese", "tomato", "basil"]}'
        model = {b"text%d" % i: text * 4 + b"%d" % i for i in range(300)}
        model.update({b"noise%d" % i: os.urandom(300) for i in range(300)})
        model.update({b"short%d" % i: b"aaaa" for i in range(300)})
        for compression in (True, False):
            self.dir = os.path.abspath(self.mktemp())
            store = self.open(compression=compression)
            for _ in range(2):
                for key, value in model.items():
                    store.put(key, value, ttl=10_000 if key.endswith(b"7") else None)
            store.flush()
            store.compact()
            stats = store.stats()
            self.assertEqual(stats["compressed_to_bytes"] > 0, compression)
            if compression:
                self.assertLess(stats["compressed_to_bytes"] * 2, stats["compressed_from_bytes"])
            self.assertEqual(dict(store.items()), model)
            self.assertEqual({key: store.get(key) for key in model}, model)
            store.close()
            flags = {key[:4]: r_flags & 4 for path in self.segment_paths()
                     for _, _, r_flags, key, _ in self.read_records(path) if not key.endswith(b"7")}
            self.assertEqual(flags, {b"text": 4 if compression else 0, b"nois": 0, b"shor": 0})
            self.assertEqual(self.contents(), model)
            self.forget_checkpoint()
            self.assertEqual(self.contents(), model)

    def read_records(self, path):
        with open(path, "rb") as f:
            content = f.read()
        return [r for r in records(content) if r[3]]


class ProofTest(CompactionCase):
    """A compaction's copies have higher ids than the segment that is written on: they prove nothing of it."""

    def check_torn(self, checkpoint):
        self.dir = "/store"
        files = CrashFiles()
        store = self.open(files=files)
        for i in range(70):
            store.put(b"k%d" % i, bytes(1000))
        store.flush()
        store.drive(store.compaction_of(store.sealed_ids()))
        store.close()
        if not checkpoint:
            files.cut(b"/store/index.ckpt", 0)
        store = self.open(files=files)
        store.apply([(b"k0", bytes(5000), None), (b"k1", None, None)])
        store.flush()
        # The size and the last page of the write reach the disk, the beginning does not.
        store = self.open(files=files.after_power_loss(lambda parts: 1 | 1 << parts - 1))
        self.assertEqual(store.recovery["checkpoint"], checkpoint)
        self.assertEqual((store.get(b"k0"), store.get(b"k1")), (bytes(1000), bytes(1000)))

    def test_batch_whose_beginning_is_lost_is_no_batch_with_a_checkpoint(self):
        self.check_torn(True)

    def test_batch_whose_beginning_is_lost_is_no_batch_without_a_checkpoint(self):
        self.check_torn(False)

    def test_without_a_checkpoint_too_nothing_is_dropped_before_what_replaced_it_is_on_the_disk(self):
        self.dir, files = "/store", CrashFiles()
        store = self.open(files=files)
        for key in range(100):
            store.put(b"key%d" % key, b"old" + bytes(1000))
        store.flush()
        store.sync()
        first = store.sealed_ids()[:1]
        store.put(b"key0", b"new")
        store.flush()
        for job in store.compaction_of(first):
            if type(job).__name__ == "WriteJob":
                files.fail("pwrite", 1, errno.ENOSPC)
            job.run()
            job.finish()
        self.assertNotIn(first[0], store.sealed_ids())
        after = files.after_power_loss(lambda parts: 0)
        store.close()
        store = self.open(files=after)
        self.assertEqual((store.get(b"key0"), len(store)), (b"new", 100))
