"""Memory for tables: zeros, apart from each other, and gone when given back."""

import random
import re

from twisted.trial.unittest import SynchronousTestCase

from tests import probe

PAGE, HUGE_PAGE = 4096, 2 << 20


def private_memory():
    with open("/proc/self/status") as status:
        return int(re.search(r"RssAnon:\s+(\d+) kB", status.read())[1]) << 10


class RegionsTest(SynchronousTestCase):
    def setUp(self):
        self.regions = probe.Regions()

    def test_tables_are_zeros_and_keep_what_is_written_whatever_is_given_back(self):
        rng = random.Random(1)
        filled = {}
        for step in range(3000):
            if rng.random() < (0.7 if step % 1000 < 600 else 0.2):
                size = rng.choice((16_384, 20_016, 65_536, 100_016, 1 << 20))
                number = self.regions.take(size)
                self.assertEqual(self.regions.read(number), bytes(size))
                self.assertEqual(self.regions.address(number) % 64, 0)
                filled[number] = rng.randrange(1, 256)
                self.regions.fill(number, filled[number])
            elif filled:
                number = rng.choice(list(filled))
                content = self.regions.read(number)
                self.assertEqual(content, bytes([filled.pop(number)]) * len(content))
                self.regions.give(number)
        for number, byte in filled.items():
            content = self.regions.read(number)
            self.assertEqual(content, bytes([byte]) * len(content))
            self.regions.give(number)
        self.assertEqual(self.regions.bytes, 0)

    def test_what_counts_is_what_was_taken_and_the_rest_of_the_last_page(self):
        for size, page in ((16_384, PAGE), (100_000, HUGE_PAGE)):
            regions = probe.Regions()
            for count in range(1, 100):
                regions.take(size)
                # Regions that were full lose less than a table each.
                self.assertLessEqual(size * count, regions.bytes)
                self.assertLess(regions.bytes, 1.01 * size * count + 64 * count + page + size)
            for number in range(99):
                regions.give(number)

    def test_memory_given_back_is_the_kernels(self):
        size = 1 << 20
        tables = [self.regions.take(size) for _ in range(100)]
        for number in tables:
            self.regions.fill(number, 1)
        full = private_memory()
        for number in tables[1:]:
            self.regions.give(number)
        self.assertLess(self.regions.bytes, 2 * HUGE_PAGE)
        self.assertLess(private_memory(), full - 90 * size)
        self.regions.give(tables[0])
        self.assertLess(private_memory(), full - 90 * size)

    def test_small_tables_that_are_given_back_leave_parts_of_pages_at_most(self):
        size = 20_000
        tables = [self.regions.take(size) for _ in range(1000)]
        for number in tables:
            self.regions.fill(number, 1)
        full = private_memory()
        for number in tables[::2]:
            self.regions.give(number)
        self.assertLess(private_memory(), full - 500 * (size - 2 * PAGE))
        for number in tables[1::2]:
            self.assertEqual(self.regions.read(number), b"\1" * size)
