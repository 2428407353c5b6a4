"""Scans: every key that exists throughout comes exactly once, in byte order, whatever happens meanwhile and whatever the
caches on disk say."""

import contextlib
import errno
import os
import random

from hypothesis import given, settings
from hypothesis import strategies as st

import kvcore
from tests.probe import HookedFiles
from tests.support import StoreCase
from tests.test_recovery import SMALL, records


def key_of(number):
    return b"key:%06d" % (number * 7919 % 1_000_003)


class OrderTest(StoreCase):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.lists(st.one_of(
        st.binary(min_size=1, max_size=30),
        # Long common beginnings, keys that begin others, and real zeros at every place of an 8-byte chunk.
        st.builds(lambda n, m, tail: b"common-prefix-" * n + bytes(m) + tail,
                  st.integers(0, 3), st.integers(0, 20), st.binary(max_size=3)).filter(bool),
    ), max_size=40), max_size=6), st.binary(max_size=3))
    def test_any_keys_in_any_number_of_runs(self, rounds, prefix):
        self.dir = os.path.abspath(self.mktemp())
        store = self.open(segment_size=SMALL, autoflush=False)
        expected = set()
        for keys in rounds:
            for key in keys:
                store.put(key, b"<" + key)
            expected.update(keys)
            self.assertEqual(list(store.keys()), sorted(expected))
        inside = sorted(key for key in expected if key.startswith(prefix))
        self.assertEqual(list(store.items(prefix)), [(key, b"<" + key) for key in inside])
        store.close()
        self.assertEqual(list(self.open().keys()), sorted(expected))

    def test_sorting_agrees_with_python_on_awkward_sets(self):
        rng = random.Random(8)
        sets = {
            "ascending": [b"%08d" % i for i in range(3000)],
            "descending": [b"%08d" % i for i in range(3000, 0, -1)],
            "up and down again": [b"%08d" % i for i in (*range(0, 3000, 2), *range(2999, 0, -2))],
            "ascending groups": [b"%08d:%d" % (i // 20, 20 - i % 20) for i in range(3000)],
            "ascending, but for one": [b"%08d" % (i if i != 2000 else 0) for i in range(1, 3000)],
            "one prefix as long as can be": [b"p" * 102_390 + b"%d" % rng.randrange(10_000) for _ in range(30)],
            "one long prefix": [b"p" * 1000 + b"%d" % rng.randrange(10_000) for _ in range(300)],
            "nested": [b"\0" * i for i in range(1, 400)],
            "few first bytes": [bytes([rng.choice(b"ab")]) * rng.randrange(1, 40) + rng.randbytes(2) for _ in range(3000)],
            "random": [rng.randbytes(rng.randrange(1, 20)) for _ in range(3000)],
        }
        for name, keys in sets.items():
            self.dir = os.path.abspath(self.mktemp())
            store = self.open(autoflush=False)
            for key in keys:
                for _ in range(2):  # every key twice: equal names in one order
                    store.put(key, b"")
            self.assertEqual(list(store.keys()), sorted(set(keys)), name)
            store.close()

    def test_what_comes_between_lists_is_merged_with_what_was_sorted_before(self):
        store = self.open(autoflush=False)
        rng = random.Random(11)
        expected = set()
        for _ in range(40):
            for _ in range(rng.choice((1, 5, 100))):
                key = b"%d" % rng.randrange(2000)
                store.put(key, b"")
                expected.add(key)
            self.assertEqual(list(store.keys()), sorted(expected))
        # A wrong order passes for damage: the list is made without it, and the segment is compacted no more.
        store.compact()
        self.assertEqual(store.stats()["dead_bytes"], 0)

    def test_long_keys(self):
        store = self.open(max_value_size=1000)
        rng = random.Random(9)
        keys = [rng.randbytes(4) + bytes(rng.randrange(90_000, 102_396)) for _ in range(40)]
        for key in keys:
            store.put(key, b"v")
        self.assertEqual(list(store.keys()), sorted(keys))

    def test_ends_of_the_byte_range(self):
        store = self.open()
        keys = sorted([b"\xff", b"\xff\xff", b"\xff\xff\x01", b"\xfe\xff", b"\xfe\xff\xff", b"\0", b"\0\0", b"a"])
        for key in keys:
            store.put(key, b"")
        for prefix in (b"", b"\xff", b"\xff\xff", b"\xfe\xff", b"\0", b"\0\0", b"\xfe", b"a", b"aa"):
            self.assertEqual(list(store.keys(prefix)), [key for key in keys if key.startswith(prefix)], prefix)


class MovingTest(StoreCase):
    def test_keys_that_exist_throughout_come_once_whatever_is_written_meanwhile(self):
        rng = random.Random(10)
        for seed in range(8):
            self.dir = os.path.abspath(self.mktemp())
            store = self.open(segment_size=SMALL, autoflush=False)
            stable = {key_of(i) for i in range(0, 2000, 2)}
            moving = [key_of(i) for i in range(1, 2000, 2)]
            for number in range(2000):
                store.put(key_of(number), b"old")
            seen = []
            for key, value in store.items():
                seen.append(key)
                self.assertEqual(value in (b"old", b"new"), True)
                for _ in range(rng.randrange(4)):
                    victim = rng.choice(moving)
                    if rng.random() < 0.5:
                        store.delete(victim)
                    else:
                        store.put(victim, b"new")
                if rng.random() < 0.3:
                    store.put(rng.choice(sorted(stable)[:50]), b"new")
                if rng.random() < 0.05:
                    store.put(b"new key %d" % rng.randrange(1000), bytes(5000))
            self.assertEqual(seen, sorted(set(seen)), seed)
            self.assertLessEqual(stable, set(seen), seed)
            store.close()

    def test_partly_consumed_cursors_beside_each_other(self):
        store = self.open(segment_size=SMALL)
        keys = [key_of(i) for i in range(500)]
        cursors = []
        for number, key in enumerate(keys):
            store.put(key, b"v")
            if number % 100 == 50:
                cursors.append((store.keys(), sorted(keys[:number + 1])))
                self.assertEqual(next(cursors[-1][0]), cursors[-1][1][0])
        for cursor, expected in cursors:
            self.assertEqual([k for k in cursor if k in expected], expected[1:])

    def test_a_cursor_outlives_nothing_but_its_store(self):
        store = self.open()
        store.put(b"a", b"1")
        cursor = store.keys()
        next(cursor)
        del cursor
        store.put(b"b", b"1")
        self.assertEqual(list(store.keys()), [b"a", b"b"])


class MisleadingKeyTest(StoreCase):
    def test_a_damaged_key_in_a_saved_order_hides_no_other(self):
        options = {"segment_size": SMALL}
        store = self.open(**options)
        for i in range(1500):
            store.put(b"key%05d" % (i * 7919 % 1500), bytes(60))
        list(store.keys())
        store.close()
        with open(self.segment_paths()[0], "rb") as f:
            content = f.read()
        keys = sorted(key for i in range(1500) if (key := b"key%05d" % i) in content)
        middle = keys[len(keys) // 2]
        for word in (b"zzz", b"aaa"):
            with open(self.segment_paths()[0], "r+b") as f:
                f.seek(content.index(middle))
                f.write(word)
            store = self.open(**options)
            self.assertEqual(store.recovery["damaged_ranges"], 0)  # it is covered by the checkpoint
            for key in keys:
                if key != middle:
                    self.assertIn(key, self.listed(store, key), (word, key))
            self.assertLessEqual({b"key%05d" % i for i in range(1500)} - {middle}, set(self.listed(store, b"")))
            store.close()

    def listed(self, store, prefix):
        """The keys that come, before a list ends in the error that one is damaged."""
        found, scan = [], store.keys(prefix)
        with contextlib.suppress(kvcore.CorruptionError):
            for key in scan:
                found.append(key)
        return found


class CacheTest(StoreCase):
    """The .ord files: built, used, and never believed without proof."""

    def setUp(self):
        super().setUp()
        store = self.open(segment_size=SMALL, autoflush=False)
        for i in range(3000):
            store.put(key_of(i), b"v%d" % i + bytes(60))
        self.expected = sorted(key_of(i) for i in range(3000))
        self.assertEqual(list(store.keys()), self.expected)
        store.close()
        self.check()

    def orders(self):
        return [os.path.join(self.dir, name) for name in sorted(os.listdir(self.dir)) if name.endswith(".ord")]

    def check(self):
        store = self.open(segment_size=SMALL)
        self.assertEqual(list(store.keys()), self.expected)
        store.close()

    def test_sealed_segments_have_an_order_and_the_manifest_is_obeyed(self):
        sealed = self.segment_paths()[:-2]
        self.assertEqual(self.orders(), [path[:-4] + ".ord" for path in sealed])
        stray = os.path.join(self.dir, "0000000999.ord")
        with open(stray, "wb") as f:
            f.write(b"left over")
        self.check()
        self.assertFalse(os.path.exists(stray))

    def test_missing_cut_or_damaged_order_is_built_anew(self):
        path = self.orders()[1]
        with open(path, "rb") as f:
            good = f.read()
        damaged = [None, b"", good[:39], good[:-1], good[:-4], good + bytes(4)]
        for at in (0, 9, 13, 17, 25, 33, 37, 45, len(good) - 1):
            damaged.append(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
        for content in damaged:
            os.unlink(path)
            if content is not None:
                with open(path, "wb") as f:
                    f.write(content)
            self.check()
            with open(path, "rb") as f:
                self.assertEqual(f.read(), good)

    def test_order_that_cannot_be_saved_serves_all_the_same(self):
        for path in self.orders():
            os.unlink(path)

        def hook(call, what):
            return -errno.ENOSPC if call in ("open", "rename") and b".ord" in what else None

        store = self.open(segment_size=SMALL, files=HookedFiles(hook))
        self.assertEqual(list(store.keys()), self.expected)
        self.assertEqual((self.orders(), store.state), ([], "ok"))
        store.close()

    def test_order_of_another_segment_is_not_believed(self):
        first, second = self.orders()[:2]
        with open(first, "rb") as f:
            content = f.read()
        with open(second, "wb") as f:
            f.write(content)
        self.check()

    def test_damaged_segment_is_listed_by_the_index(self):
        """Its records cannot be walked one after the other any more; those that are good come all the same."""
        path = self.segment_paths()[1]
        with open(path, "r+b") as f:
            f.seek(1000)
            f.write(os.urandom(300))
        for _ in range(2):  # found when it is read, and when it is replayed
            os.unlink(self.orders()[1])
            store = self.open(segment_size=SMALL)
            keys = []
            with contextlib.suppress(kvcore.CorruptionError):
                keys.extend(store.keys())
            self.assertEqual(keys, sorted(set(keys)))
            self.assertLessEqual(set(keys), set(self.expected))
            self.assertGreater(len(keys), len(self.expected) - 15)
            store.close()
            self.assertFalse(os.path.exists(path[:-4] + ".ord"))
            self.forget_checkpoint()
            with open(path[:-4] + ".ord", "wb"):
                pass

    def test_saved_order_of_a_damaged_segment_is_not_believed(self):
        """A key that is damaged where it stands must not mislead the search for others."""
        path = self.segment_paths()[1]
        with open(path, "rb") as f:
            content = f.read()
        middle = sorted(key for _, _, _, key, _ in records(content) if key)[len(records(content)) // 2]
        at = content.index(middle)
        with open(path, "r+b") as f:
            f.seek(at)
            f.write(b"zzzz")
        self.forget_checkpoint()
        for _ in range(2):  # replayed, and below the checkpoint that the first closing wrote
            store = self.open(segment_size=SMALL)
            for key in self.expected:
                if key != middle:
                    self.assertEqual(list(store.keys(key)), [key])
            store.close()
