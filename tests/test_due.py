"""What is due in the background, and in which order."""

import os

from kvcore.crashfs import CrashFiles
from tests.probe import HandFiles
from tests.test_compaction import CompactionCase
from tests.test_recovery import SMALL

CHECKPOINT = 64 << 20       # bytes of log after which one is due


def kinds(steps):
    """The names of the jobs of an iterator, done one after another."""
    found = []
    for job in steps or ():
        found.append(type(job).__name__)
        job.run()
        job.finish()
    return found


class DueCase(CompactionCase):
    def write(self, store, value, keys=range(40), size=1000):
        """Some segments' worth of records."""
        for _ in range(4):
            for key in keys:
                store.put(b"key%d" % key, value + bytes(size))
        store.flush()

    def orders(self):
        return [name for name in os.listdir(self.dir) if name.endswith(".ord")]


class UnreadTest(DueCase):
    """A segment in which nothing counts any more is dropped without being read."""

    def test_what_is_dead_throughout_is_not_read(self):
        store = self.open()
        self.write(store, b"old")
        old = store.sealed_ids()
        self.write(store, b"new")
        store.drive(store.compaction_of(old[:-1]))
        stats = store.stats()
        self.assertEqual((stats["compaction_read_bytes"], stats["compaction_written_bytes"]), (0, 0))
        self.assertGreater(stats["compaction_reclaimed_bytes"], (len(old) - 2) * SMALL)
        self.assertFalse(set(store.sealed_ids()) & set(old[:-1]))
        self.check_killed({b"key%d" % key: b"new" + bytes(1000) for key in range(40)})

    def test_one_record_that_counts_is_found(self):
        store = self.open()
        store.put(b"kept", b"as it is")
        self.write(store, b"old")
        old = store.sealed_ids()
        self.write(store, b"new")
        store.drive(store.compaction_of(old[:1]))
        self.assertGreater(store.stats()["compaction_read_bytes"], 0)
        self.assertEqual(store.get(b"kept"), b"as it is")
        self.check_killed(dict(store.items()))

    def hidden(self, files, hide):
        """An older record in a segment of its own; then one that hides it, where all else is dead."""
        store = self.open(files=files)
        self.write(store, b"first")
        store.put(b"hidden", b"older")
        self.write(store, b"first")
        older = store.sealed_ids()
        hide(store)
        self.write(store, b"old")
        hiding = next(number for number in store.sealed_ids() if number not in older)
        self.write(store, b"new")
        files.now += 20_000
        while store.sweep():
            pass
        # What hides it is copied, and the copy of that again.
        for _ in range(2):
            sealed = store.sealed_ids()
            store.drive(store.compaction_of([hiding]))
            self.assertNotIn(hiding, store.sealed_ids())
            (hiding,) = set(store.sealed_ids()) - set(sealed)
        self.assertIsNone(store.get(b"hidden"))
        model = dict(store.items())
        self.assertNotIn(b"hidden", model)
        store.close()
        os.unlink(os.path.join(self.dir, "index.ckpt"))
        store = self.open(files=files)
        self.assertEqual(dict(store.items()), model)

    def test_a_tombstone_goes_on_hiding(self):
        files = HandFiles()
        files.now = 1_800_000_000_000
        self.hidden(files, lambda store: store.delete(b"hidden"))

    def test_a_deadline_goes_on_hiding(self):
        files = HandFiles()
        files.now = 1_800_000_000_000
        self.hidden(files, lambda store: store.put(b"hidden", b"newer", ttl=10))

    def test_what_replaced_it_is_on_the_disk_before(self):
        self.dir, files = "/store", CrashFiles()
        store = self.open(files=files)
        self.write(store, b"old")
        store.sync()
        old = store.sealed_ids()
        for key in range(40):
            store.put(b"key%d" % key, b"new")
        store.flush()
        store.drive(store.compaction_of(old))
        self.assertEqual((set(old) & set(store.sealed_ids()), store.stats()["compaction_read_bytes"]), (set(), 0))
        after = files.after_power_loss(lambda parts: 0)
        store.close()
        self.assertEqual(dict(self.open(files=after).items()), {b"key%d" % key: b"new" for key in range(40)})

    def test_after_an_opening_nobody_knows_what_a_segment_hides(self):
        store = self.open()
        self.write(store, b"old")
        old = store.sealed_ids()
        store.close()
        store = self.open()
        self.write(store, b"new")
        store.drive(store.compaction_of(old[:-1]))
        self.assertGreater(store.stats()["compaction_read_bytes"], (len(old) - 2) * SMALL)

    def test_all_that_are_dead_go_in_one_run(self):
        store = self.open()
        for _ in range(10):
            self.write(store, b"v")
        self.assertGreater(len(store.sealed_ids()), 20)
        store.drive(store.maintenance())
        self.assertLess(len(store.sealed_ids()), 6)
        self.assertEqual(store.stats()["compactions"], 1)


class UrgentTest(DueCase):
    def test_orders_come_last_and_one_a_segment(self):
        store = self.open()
        self.write(store, b"", range(1000, 1100))
        self.assertEqual(self.orders(), [])
        count = len(store.sealed_ids())
        found = kinds(store.maintenance())
        while (steps := store.maintenance()) is not None:
            found += kinds(steps)
        self.assertEqual(found[-1], "OrderJob")
        self.assertEqual(len(self.orders()), len(store.sealed_ids()))
        self.assertLess(found.count("OrderJob"), count)     # what was dead is not sorted

    def test_space_before_checkpoints_when_there_is_much_to_reclaim(self):
        store = self.open(segment_size=8 << 20)
        while store.stats()["replay_bytes"] < CHECKPOINT or not store.stats()["compaction_behind"]:
            self.assertLess(store.stats()["disk_bytes"], 2 * CHECKPOINT)
            self.write(store, b"v", size=100_000)
        self.assertIn("DropJob", kinds(store.maintenance()))
        self.assertFalse(store.stats()["compaction_behind"])
        self.assertEqual(store.stats()["checkpoints"], 1)

    def test_a_checkpoint_before_other_compactions(self):
        store = self.open(segment_size=8 << 20)
        self.write(store, b"v", size=100_000)
        for key in range(CHECKPOINT // 100_000):
            store.put(b"more%d" % key, bytes(100_000))
        store.flush()
        self.assertFalse(store.stats()["compaction_behind"])
        self.assertNotIn("DropJob", kinds(store.maintenance()))
        self.assertEqual(store.stats()["checkpoints"], 1)
        self.assertIn("DropJob", kinds(store.maintenance()))

    def test_closing_sorts_a_few(self):
        store = self.open()
        for key in range(1000):
            store.put(b"key%d" % key, bytes(1000))
        store.flush()
        self.assertGreater(len(store.sealed_ids()), 10)
        store.close()
        self.assertEqual(len(self.orders()), 8)

    def test_what_a_list_has_sorted_is_not_due(self):
        store = self.open()
        for key in range(1000):
            store.put(b"key%d" % key, bytes(1000))
        self.assertEqual(len(list(store.keys())), 1000)
        self.assertEqual(len(self.orders()), len(store.sealed_ids()))
        self.assertIsNone(store.maintenance())

    def sorting(self):
        """A store, and its steps with the first of several segments sorted."""
        store = self.open(segment_size=1 << 18)
        for key in range(2000):
            store.put(b"key%d" % key, bytes(1000))
        store.flush()
        steps = store.maintenance()
        store.drive([next(steps)])
        self.assertEqual(len(self.orders()), 1)
        return store, steps

    def test_sorting_ends_when_there_is_much_to_reclaim(self):
        store, steps = self.sorting()
        while not store.stats()["compaction_behind"]:
            self.write(store, b"v", range(200))
        self.assertEqual(kinds(steps), [])

    def test_sorting_ends_when_a_checkpoint_is_due(self):
        store, steps = self.sorting()
        for key in range(CHECKPOINT // 100_000):
            store.put(b"more%d" % key, bytes(100_000))
        store.flush()
        self.assertEqual(kinds(steps), [])
        self.assertIn("PublishJob", kinds(store.maintenance()))


class ChunkTest(DueCase):
    """Segments are read in jobs of some MiB, or of some thousand records."""

    def half_dead(self, count, size):
        store = self.open(segment_size=16 << 20, compression=False)
        model = {}
        for key in range(count):
            model[b"%d" % key] = bytes(size) + b"%d" % key
            store.put(b"%d" % key, model[b"%d" % key])
        store.flush()
        for key in range(0, count, 2):
            model[b"%d" % key] = b"new"
            store.put(b"%d" % key, b"new")
        store.flush()
        store.compact()
        self.assertEqual(dict(store.items()), model)
        self.assertGreater(store.stats()["compaction_written_bytes"], 0)
        store.close()
        self.assertEqual(self.contents(), model)

    def test_many_short_records(self):
        self.half_dead(100_000, 0)

    def test_records_that_are_longer_than_a_chunk(self):
        self.half_dead(4, 5 << 20)

    def test_records_across_pieces(self):
        self.half_dead(300, 50_000)
