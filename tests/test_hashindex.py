"""The index: entries are found by their hash, whatever else stands there, and cost what the design says."""

import random

from twisted.trial.unittest import SynchronousTestCase

from kvcore.hashindex import HashIndex
from tests import probe


class IndexTest(SynchronousTestCase):
    def setUp(self):
        self.index = HashIndex(bytes(16))

    def test_absent_in_empty_index(self):
        self.assertEqual(probe.find(self.index, 12345), [])

    def test_equal_hashes_stand_beside_each_other(self):
        for tag in range(1, 200):
            probe.insert(self.index, 7, tag)
        self.assertEqual(sorted(probe.find(self.index, 7)), list(range(1, 200)))
        self.assertEqual(probe.find(self.index, 8), [])
        for tag in range(1, 199):
            self.assertTrue(probe.remove(self.index, 7, tag))
        self.assertEqual(probe.find(self.index, 7), [199])

    def test_agrees_with_a_dict_through_growing_and_shrinking(self):
        rng = random.Random(1)
        model = {}
        # Few distinct partitions and hashes at both ends of the range, so that runs are long and meet the table's end.
        ends = (lambda: rng.getrandbits(32), lambda: 0xFFFFFFFF - rng.randrange(64), lambda: rng.randrange(64))
        hashes = [rng.choice((0, 1, 255)) << 56 | rng.choice(ends)() for _ in range(4000)]
        for step in range(60_000):
            growing = (step // 10_000) % 2 == 0
            hash = rng.choice(hashes)
            if rng.random() < (0.8 if growing else 0.2):
                tag = step + 1
                probe.insert(self.index, hash, tag)
                model.setdefault(hash, set()).add(tag)
            elif model.get(hash):
                self.assertTrue(probe.remove(self.index, hash, model[hash].pop()))
            if step % 1000 == 0:
                self.assertEqual(self.index.count, sum(map(len, model.values())))
            if step % 10 == 0:
                probed = rng.choice(hashes)
                self.assertEqual(set(probe.find(self.index, probed)), model.get(probed, set()))
        for hash in set(hashes):
            self.assertEqual(set(probe.find(self.index, hash)), model.get(hash, set()))

    def test_at_most_24_bytes_a_key_and_memory_is_given_back(self):
        rng = random.Random(2)
        hashes = [rng.getrandbits(64) for _ in range(300_000)]
        for count, hash in enumerate(hashes, 1):
            probe.insert(self.index, hash, 1)
            if count % 10_000 == 0 and count >= 50_000:
                self.assertLessEqual(probe.table_bytes(self.index) / count, 24)
        full = probe.table_bytes(self.index)
        for hash in hashes:
            self.assertTrue(probe.remove(self.index, hash, 1))
        self.assertEqual(self.index.count, 0)
        self.assertLess(probe.table_bytes(self.index), full / 20)

    def test_hash_depends_on_the_secret_and_all_of_the_key(self):
        other = HashIndex(bytes(15) + b"\1")
        keys = [b"", b"a", b"b", b"a" * 7, b"a" * 8, b"a" * 9, b"a" * 8 + b"\0", b"\0", b"\0\0"]
        hashes = {probe.key_hash(index, key) for key in keys for index in (self.index, other)}
        self.assertEqual(len(hashes), 2 * len(keys))

    def test_hash_is_siphash_1_3(self):
        """CPython hashes bytes with SipHash-1-3 too; where it says so, with a fixed key, the results must agree."""
        import os
        import subprocess
        import sys

        if sys.hash_info.algorithm != "siphash13":
            self.skipTest("this Python hashes with " + sys.hash_info.algorithm)
        keys = [bytes(range(1, n + 1)) for n in (*range(1, 34), 100)]
        # PYTHONHASHSEED=0 means the key is all zero.
        said = subprocess.run(
            [sys.executable, "-c", f"print([hash(k) & (2**64 - 1) for k in {keys!r}])"],
            env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True)
        self.assertEqual(str([probe.key_hash(self.index, key) for key in keys]), said.stdout.strip())

    def test_secret_of_another_length_is_refused(self):
        self.assertRaises(ValueError, HashIndex, b"short")
