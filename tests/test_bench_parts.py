"""The parts of the load generator: histogram, keys and values, commands and replies."""

import itertools
import random
import zlib
from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from kvnet.bench.histogram import Histogram
from kvnet.bench.mix import MIXES, Mix, Span, fixed
from kvnet.bench.workload import Workload
from tests.wire_probe import command, replies

PERCENTS = (1, 25, 50, 90, 95, 99, 99.9, 99.99, 100)


class HistogramTest(SynchronousTestCase):
    def filled(self, values):
        histogram = Histogram()
        for value in values:
            histogram.add(value)
        return histogram

    def test_percentiles_against_sorted_values(self):
        rng = random.Random(1)
        for name, values in {
            "even": [rng.randrange(1_000_000) for _ in range(20_000)],
            "long tail": [int(rng.lognormvariate(12, 2)) for _ in range(20_000)],
            "two humps": [rng.choice((1000, 50_000_000)) + rng.randrange(100) for _ in range(20_000)],
            "powers of two": [1 << rng.randrange(41) for _ in range(5000)],
        }.items():
            histogram, values = self.filled(values), sorted(values)
            for percent in PERCENTS:
                exact = values[max(0, -(-int(len(values) * percent * 100) // 10_000) - 1)]
                found = histogram.percentile(percent)
                self.assertTrue(exact <= found <= exact * (1 + 1 / 64), (name, percent, exact, found))

    def test_small_values_are_exact(self):
        histogram = self.filled(range(128))
        self.assertEqual(histogram.buckets(), [(value, 1) for value in range(128)])

    def test_every_bucket_holds_its_own_values(self):
        for bits in range(7, 42):
            for value in (1 << bits, (1 << bits) + 1, (2 << bits) - 1):
                ((upper, count),) = [*self.filled([value, 1 << 43]).buckets()][:1]
                self.assertTrue(value <= upper <= value * (1 + 1 / 64), (value, upper))

    def test_longest_and_mean_are_exact(self):
        histogram = self.filled([5, 1_000_003, 7])
        self.assertEqual((histogram.longest, histogram.mean, histogram.count), (1_000_003, 1_000_015 / 3, 3))
        self.assertEqual(histogram.percentile(100), 1_000_003)

    def test_empty(self):
        histogram = Histogram()
        self.assertEqual((histogram.percentile(99), histogram.longest, histogram.mean, histogram.buckets()), (0, 0, 0, []))

    def test_longer_than_it_can_tell(self):
        histogram = self.filled([1 << 50])
        self.assertEqual((histogram.count, histogram.longest), (1, 1 << 50))

    def test_merge(self):
        values = [random.Random(2).randrange(10**9) for _ in range(1000)]
        merged, all_of_them = self.filled(values[:300]), self.filled(values)
        merged.merge(self.filled(values[300:]))
        self.assertEqual(merged.buckets(), all_of_them.buckets())
        self.assertEqual((merged.mean, merged.longest), (all_of_them.mean, all_of_them.longest))


class KeysAndValuesTest(SynchronousTestCase):
    def test_sizes(self):
        for key_size, value_size in ((1, 0), (5, 1), (12, 256), (15, 100), (16, 7), (40, 100_000), (102_400, 3)):
            workload = Workload(10, fixed(key_size, value_size))
            for number in range(10):
                self.assertEqual((len(workload.key(number)), len(workload.value(number))), (key_size, value_size))

    def test_keys_are_different_and_allowed(self):
        for mix in (fixed(4, 10), fixed(16, 10), fixed(30, 10), MIXES["pizzaria"]):
            workload = Workload(2000, mix)
            keys = [workload.key(number) for number in range(2000)]
            self.assertEqual(len(set(keys)), 2000)
            for key in keys:
                self.assertRegex(key, rb"\A[A-Za-z0-9.:-]+\Z")

    def test_the_same_again(self):
        one, other = (Workload(1000, MIXES["pizzaria"], name) for name in ("uniform", "zipf"))
        for number in range(50):
            self.assertEqual((one.key(number), one.value(number)), (other.key(number), other.value(number)))
        self.assertNotEqual(one.value(1), one.value(2))

    def test_values_fit_every_protocol_and_do_not_compress(self):
        workload = Workload(500, fixed(16, 1000))
        data = b"".join(workload.value(number) for number in range(500))
        self.assertFalse(set(b"\r\n|\0") & set(data))
        self.assertGreater(len(zlib.compress(data)), 0.98 * len(data))
        self.assertGreater(len(zlib.compress(workload.value(1))), 0.98 * 1000)

    def test_too_many_keys_for_their_size(self):
        Workload(1000, fixed(3, 1))
        error = self.assertRaises(ValueError, Workload, 1001, fixed(3, 1))
        self.assertEqual(str(error), "keys of 3 bytes tell at most 1000 apart")

    def test_spans_that_make_no_hundred(self):
        self.assertRaises(ValueError, Workload, 10, Mix((Span(99, 10, 20),), Span(100, 1, 1)))

    def test_pizzaria(self):
        workload = Workload(20_000, MIXES["pizzaria"])
        sizes = [len(workload.key(number)) for number in range(20_000)]
        shares = Counter("small" if n <= 1024 else "middle" if n <= 10_240 else "large" for n in sizes)
        self.assertLess(abs(shares["small"] / 20_000 - 0.7), 0.02)
        self.assertLess(abs(shares["middle"] / 20_000 - 0.2), 0.02)
        self.assertTrue(8 <= min(sizes) <= 12 and 102_000 <= max(sizes) <= 102_400, (min(sizes), max(sizes)))
        values = [len(workload.value(number)) for number in range(20_000)]
        self.assertEqual((min(values), max(values)), (100, 1000))
        self.assertEqual(workload.live_bytes(), sum(sizes) + sum(values))


class DistributionTest(SynchronousTestCase):
    """Coarse statistics of fixed seeds."""

    COUNT = 100_000

    def shares(self, name, keys=1000):
        """How large a part of the picks falls on each key, the largest first."""
        picks = Workload(keys, fixed(16, 10), name).picks(self.COUNT, 1)
        self.assertTrue(min(picks) >= 0 and max(picks) < keys)
        return [count / self.COUNT for _, count in Counter(picks).most_common()]

    def test_uniform(self):
        shares = self.shares("uniform")
        self.assertEqual(len(shares), 1000)
        self.assertLess(shares[0], 2 * shares[-1])

    def test_80_20(self):
        shares = self.shares("80-20")
        self.assertLess(abs(sum(shares[:200]) - 0.8), 0.01)
        self.assertEqual(len(shares), 1000)
        self.assertLess(shares[0], 1.6 * shares[199])

    def test_zipf(self):
        shares = self.shares("zipf")
        total = sum(i**-0.99 for i in range(1, 1001))
        for rank in (1, 2, 3, 10, 100):  # from the third on the way it is drawn is an approximation
            self.assertLess(abs(shares[rank - 1] / (rank**-0.99 / total) - 1), 0.05 if rank < 3 else 0.2, rank)
        self.assertLess(abs(sum(shares[:100]) - sum(i**-0.99 for i in range(1, 101)) / total), 0.02)

    def test_few_keys(self):
        for name in ("uniform", "80-20", "zipf"):
            for keys in range(1, 12):
                self.assertEqual(len(self.shares(name, keys)), keys, name)

    def test_many_keys(self):
        for name in ("uniform", "80-20", "zipf"):
            picks = Workload(4_000_000_000, fixed(16, 10), name).picks(1000, 1)
            self.assertGreater(max(picks), 1_000_000_000)
            self.assertLess(max(picks), 4_000_000_000)

    def test_popular_keys_are_no_neighbours(self):
        picks = Counter(Workload(1_000_000, fixed(16, 10), "zipf").picks(self.COUNT, 1))
        popular = sorted(number for number, _ in picks.most_common(10))
        self.assertGreater(min(b - a for a, b in itertools.pairwise(popular)), 1000)

    def test_seeds(self):
        workload = Workload(1000, fixed(16, 10), "80-20")
        self.assertEqual(workload.picks(20, 7), workload.picks(20, 7))
        self.assertNotEqual(workload.picks(20, 7), workload.picks(20, 8))


class CommandTest(SynchronousTestCase):
    def test_text(self):
        workload = Workload(100, fixed(16, 5))
        value = workload.value(42)
        self.assertEqual(command("text", "write", workload, 42), b"write key:000000000042|" + value + b"\r")
        self.assertEqual(command("text", "read", workload, 42), b"read key:000000000042\r")

    def test_resp(self):
        workload = Workload(100, fixed(9, 1234))
        write = b"*3\r\n$3\r\nSET\r\n$9\r\n000000007\r\n$1234\r\n" + workload.value(7) + b"\r\n"
        self.assertEqual(command("resp", "write", workload, 7), write)
        self.assertEqual(command("resp", "read", workload, 7), b"*2\r\n$3\r\nGET\r\n$9\r\n000000007\r\n")

    def test_empty_value(self):
        workload = Workload(1, fixed(1, 0))
        self.assertEqual(command("resp", "write", workload, 0), b"*3\r\n$3\r\nSET\r\n$1\r\n0\r\n$0\r\n\r\n")
        self.assertEqual(command("text", "write", workload, 0), b"write 0|\r")


class ReplyTest(SynchronousTestCase):
    """Every stream is fed whole, cut in two at every place, and byte by byte: the outcomes are the same."""

    def check(self, protocol, asked, stream, outcomes):
        cuts = [[stream], [stream[i : i + 1] for i in range(len(stream))]]
        cuts += [[stream[:i], stream[i:]] for i in range(1, len(stream))]
        for chunks in cuts:
            self.assertEqual(replies(protocol, asked, chunks), outcomes, chunks)

    def test_text(self):
        self.check(
            "text",
            [None, b"value", b"", None, b"v", b"v", b"error", b"erro"],
            b"success\rvalue\r\rerror: full\rerror\rerror: no such key\rerror\rerro\r",
            [("good", b""), ("good", b""), ("good", b""), ("refused", b"error: full"), ("miss", b"error"),
             ("miss", b"error: no such key"), ("good", b""), ("good", b"")],
        )  # fmt: skip

    def test_text_wrong_values(self):
        long = b"x" * 300
        self.check(
            "text",
            [b"value", b"value", b"value", b"value", b"", long],
            b"valu\rvalues\rvalwe\r\rx\r" + long[:-1] + b"y\r",
            [("wrong", b"valu"), ("wrong", b"values"), ("wrong", b"valwe"), ("wrong", b""), ("wrong", b"x"),
             ("wrong", long[:120])],
        )  # fmt: skip

    def test_text_that_does_not_answer_a_write(self):
        self.check("text", [None], b"HTTP/1.1 400 Bad Request\r", [("foreign", b"HTTP/1.1 400 Bad Request")])

    def test_resp(self):
        self.check(
            "resp",
            [None, b"value", b"", b"v", None, b"v", b"a\r\nb"],
            b"+OK\r\n$5\r\nvalue\r\n$0\r\n\r\n$-1\r\n-OOM no memory\r\n-ERR\r\n$4\r\na\r\nb\r\n",
            [("good", b"+OK"), ("good", b""), ("good", b""), ("miss", b"$-1"), ("refused", b"-OOM no memory"),
             ("refused", b"-ERR"), ("good", b"")],
        )  # fmt: skip

    def test_resp_wrong_values(self):
        self.check(
            "resp",
            [b"value", b"value", b"value", b"", b"v", b"v"],
            b"$4\r\nvalu\r\n$5\r\nvalux\r\n$7\r\nvalue\r\n\r\n$1\r\nx\r\n$0\r\n\r\n$1\r\nv\r\n",
            [("wrong", b"valu"), ("wrong", b"valux"), ("wrong", b"value\r\n"), ("wrong", b"x"), ("wrong", b""),
             ("good", b"")],
        )  # fmt: skip

    def test_resp_that_is_none(self):
        for asked, stream in (
            ([None], b"HTTP/1.1 400\r\n"),
            ([None], b"+QUEUED\r\n"),
            ([None], b"$2\r\nOK\r\n"),
            ([b"v"], b"+v\r\n"),
            ([b"v"], b"$x\r\n"),
            ([b"v"], b"$\r\n"),
            ([b"v"], b"$-2\r\n"),
            ([b"v"], b"$99999999999999999999\r\n"),
            ([b"v"], b"$2000000000\r\n"),
            ([b"v"], b"$1\r\nv\n\r"),
            ([b"v"], b"$1\r\nv\rx"),
            ([b"v"], b"\r\n"),
        ):
            for chunks in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
                self.assertEqual([outcome for outcome, _ in replies("resp", asked, chunks)], ["foreign"], chunks)

    def test_long_error(self):
        stream = b"-" + b"E" * 1000 + b"\r\n+OK\r\n"
        self.assertEqual(replies("resp", [None, None], [stream]), [("refused", stream[:120]), ("good", b"+OK")])

    def test_incomplete(self):
        for protocol, stream in (("text", b"val"), ("resp", b"$5\r\nvalue\r")):
            self.assertEqual(replies(protocol, [b"value"], [stream]), [("more", b"")])
