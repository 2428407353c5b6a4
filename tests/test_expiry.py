"""Deadlines: a key is gone from that moment on, at every reader, and nothing brings it or an older value back."""

import kvcore
from tests.probe import HandFiles
from tests.support import StoreCase
from tests.test_recovery import SMALL

START = 1_800_000_000_000


class ExpiryTest(StoreCase):
    def setUp(self):
        super().setUp()
        self.files = HandFiles()
        self.files.now = START

    def open(self, **options):
        return super().open(files=self.files, **options)

    def pass_time(self, seconds):
        self.files.now += int(seconds * 1000)

    def test_gone_for_every_reader_from_the_deadline_on(self):
        store = self.open()
        store.put(b"a", b"1", ttl=10)
        store.put(b"b", b"2")
        store.put(b"c", b"3", ttl=20)
        self.pass_time(9.999)
        self.assertEqual(store.get(b"a"), b"1")
        self.assertEqual(len(store), 3)
        self.pass_time(0.001)
        self.assertIsNone(store.get(b"a"))
        self.assertEqual(list(store.keys()), [b"b", b"c"])
        self.assertEqual(dict(store.items()), {b"b": b"2", b"c": b"3"})
        # Sweeping is the business of who drives the store: looking at its figures must not take long.
        self.assertEqual(store.stats()["keys"], 3)
        self.assertFalse(store.sweep())
        self.assertEqual((store.stats()["keys"], len(store)), (2, 2))
        self.assertFalse(store.delete(b"a"))

    def test_deadline_passes_in_the_middle_of_a_scan(self):
        store = self.open()
        for key in (b"a", b"b", b"c"):
            store.put(key, b"1", ttl=10 if key == b"b" else None)
        scan = store.keys()
        next(scan)
        self.pass_time(10)
        self.assertEqual(list(scan), [b"c"])

    def test_writing_anew_sets_or_lifts_the_deadline(self):
        store = self.open()
        store.put(b"a", b"1", ttl=10)
        store.put(b"b", b"1", ttl=10)
        store.put(b"a", b"2")
        store.put(b"b", b"2", ttl=100)
        self.pass_time(50)
        self.assertEqual(dict(store.items()), {b"a": b"2", b"b": b"2"})
        self.assertEqual(len(store), 2)
        self.pass_time(50)
        self.assertEqual(dict(store.items()), {b"a": b"2"})

    def test_expired_key_can_be_written_again(self):
        store = self.open()
        for swept in (False, True):
            store.put(b"a", b"1", ttl=1)
            self.pass_time(2)
            if swept:
                self.assertEqual(len(store), 0)
            store.put(b"a", b"2")
            self.assertEqual(store.get(b"a"), b"2")
            self.assertEqual(len(store), 1)
            store.delete(b"a")

    def test_restart_neither_moves_the_deadline_nor_brings_an_older_value_back(self):
        for swept in (False, True):
            store = self.open()
            store.put(b"a", b"older")
            store.put(b"a", b"1", ttl=100)
            store.close()
            self.pass_time(60)
            store = self.open()
            self.assertEqual(store.get(b"a"), b"1")
            self.pass_time(39.999)
            self.assertEqual(store.get(b"a"), b"1")
            self.pass_time(0.001)
            if swept:
                self.assertEqual(len(store), 0)
            store.close()
            store = self.open()
            self.assertIsNone(store.get(b"a"))
            self.assertEqual((len(store), list(store.keys())), (0, []))
            store.close()

    def test_clock_that_jumps_back_does_not_bring_back_what_was_gone_when_something_was_written(self):
        store = self.open()
        store.put(b"a", b"1", ttl=10)
        self.pass_time(20)
        store.put(b"b", b"1")
        self.pass_time(-20)
        self.assertIsNone(store.get(b"a"))
        store.close()
        self.assertEqual(self.contents(), {b"b": b"1"})

    def test_many_deadlines_agree_with_a_dict(self):
        store = self.open(segment_size=SMALL, autoflush=False)
        model = {}
        for step in range(6000):
            key = b"k%d" % (step * 7919 % 500)
            if step % 5 == 0:
                self.assertEqual(store.delete(key), model.get(key, 0) > self.files.now)
                model.pop(key, None)
            else:
                ttl = (step * 31 % 97) + 1
                store.put(key, bytes(step % 50), ttl=ttl if step % 3 else None)
                model[key] = self.files.now + ttl * 1000 if step % 3 else 1 << 62
            if step % 10 == 0:
                self.pass_time(0.5)
            if step % 1000 == 999:
                store.close()
                store = self.open(segment_size=SMALL, autoflush=False)
            alive = {key for key, deadline in model.items() if deadline > self.files.now}
            if step % 50 == 0:
                self.assertEqual(set(store.keys()), alive, step)
                self.assertEqual(len(store), len(alive), step)

    def test_deadlines_that_were_replaced_do_not_pile_up(self):
        store = self.open(autoflush=False)
        for step in range(100_000):
            store.put(b"session", b"%d" % step, ttl=3600)
            self.pass_time(0.001)
            if step % 1000 == 0:
                store.flush()
                self.assertEqual(len(store), 1)
        self.assertLess(store.stats()["deadline_bytes"], 1 << 20)

    def test_ttl_out_of_range(self):
        store = self.open()
        for ttl in (0, -1, float("nan"), float("inf"), 1e11):
            self.assertRaises(kvcore.UsageError, store.put, b"a", b"1", ttl=ttl)
        self.assertRaises(TypeError, store.put, b"a", b"1", ttl="10")
        self.assertEqual(len(store), 0)
