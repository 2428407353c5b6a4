"""The scrub: damage in sealed segments is found, told once and kept from compaction; at its pace, beside all else."""

import os

from twisted.internet.testing import EventLoggingObserver
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

import kvcore
from kvcore.scrub import Scrub
from kvnet import scrubber
from kvnet.families import FAMILIES, Sources
from kvnet.metrics import Metrics
from kvnet.scrubber import Scrubber
from tests.probe import BadBlocks
from tests.test_protocol import HandReactor
from tests.test_recovery import HEADER, SMALL, CrashCase, records


class ScrubCase(CrashCase):
    """An open store of several sealed segments: keys k000..., values of 1,000 bytes."""

    COUNT = 200
    FILES = None

    def setUp(self):
        super().setUp()
        self.pairs = {b"k%03d" % i: os.urandom(1000) for i in range(self.COUNT)}
        self.store = self.open(segment_size=SMALL, compression=False, files=self.FILES)
        for key, value in self.pairs.items():
            self.store.put(key, value)
        self.paths = [path for path in self.segment_paths() if int(os.path.basename(path)[:10]) in self.store.sealed_ids()]
        self.assertEqual(len(self.paths), 3)
        self.found = records(self.read(self.paths[0]))

    def flip(self, path, offset):
        """Change a byte in place, as a disk does."""
        with open(path, "r+b") as f:
            f.seek(offset)
            byte = f.read(1)[0]
            f.seek(offset)
            f.write(bytes([byte ^ 1]))


class FindingTest(ScrubCase):
    def test_nothing_is_wrong(self):
        scrub = Scrub(self.store)
        self.store.drive(scrub.steps())
        self.assertEqual(scrub.damage, [])
        self.assertEqual(scrub.bytes, sum(os.path.getsize(path) - HEADER for path in self.paths))
        self.assertGreater(scrub.passed_at, 1_600_000_000)

    def test_damaged_value(self):
        offset, size, _, key, _ = self.found[7]
        self.flip(self.paths[0], offset + 500)
        (item,) = self.store.scrub()
        self.assertEqual(item[:3], (os.path.basename(self.paths[0]), offset, size))
        self.assertEqual(item.keys, [key])

    def test_damage_at_the_beginning_the_end_and_in_two_segments(self):
        last = records(self.read(self.paths[2]))[-1]
        self.flip(self.paths[0], HEADER)
        self.flip(self.paths[2], last[0] + last[1] - 1)
        told = [(item.file, item.offset) for item in self.store.scrub()]
        self.assertEqual(told, [("0000000001.seg", HEADER), ("0000000003.seg", last[0])])

    def test_file_that_became_shorter(self):
        os.truncate(self.paths[1], 8192)
        (item,) = self.store.scrub()
        found = [r for r in records(self.read(self.paths[2])) if r[0] + r[1] <= 8192]
        self.assertEqual(item.file, "0000000002.seg")
        self.assertTrue(found[-1][0] < item.offset <= 8192, item)
        self.assertTrue(item.hides)

    def test_file_that_is_gone(self):
        size = os.path.getsize(self.paths[1])
        os.unlink(self.paths[1])
        (item,) = self.store.scrub()
        self.assertEqual(item[:3], ("0000000002.seg", 0, size))
        self.assertIn("is missing", item.what)
        # What this process has mapped it still reads.
        self.assertEqual(dict(self.store.items()), self.pairs)

    def test_damage_is_told_once_and_counted_for_as_long_as_it_is_there(self):
        told = []
        scrub = Scrub(self.store, told.append)
        self.flip(self.paths[0], self.found[3][0] + 100)
        self.store.drive(scrub.steps())
        self.store.drive(scrub.steps())
        self.assertEqual((len(told), len(scrub.damage)), (1, 1))
        self.flip(self.paths[0], self.found[9][0] + 100)
        self.store.drive(scrub.steps())
        self.assertEqual((len(told), len(scrub.damage)), (2, 2))
        self.flip(self.paths[0], self.found[3][0] + 100)
        self.store.drive(scrub.steps())
        self.assertEqual((len(told), len(scrub.damage)), (2, 1))

    def test_compaction_neither_drops_nor_copies_what_is_damaged(self):
        key = self.found[7][3]
        self.flip(self.paths[0], self.found[7][0] + 500)
        self.store.scrub()
        for other in self.pairs:
            if other != key:
                self.store.put(other, b"new")
        self.store.compact()
        self.assertTrue(os.path.exists(self.paths[0]))
        self.assertFalse(os.path.exists(self.paths[1]))
        self.assertRaises(kvcore.CorruptionError, self.store.get, key)
        self.assertEqual(len(self.store.scrub()), 1)

    def test_segments_that_a_compaction_drops_meanwhile(self):
        for key in self.pairs:
            self.store.put(key, b"new")
        for stop in range(6):
            told = []
            scrub = Scrub(self.store, told.append)
            for number, job in enumerate(scrub.steps()):
                if number == stop:
                    self.store.drive(self.store.compaction_of(self.store.sealed_ids()[:2]))
                job.run()
                job.finish()
            self.assertEqual((told, scrub.damage), ([], []))
        self.assertEqual(dict(self.store.items()), dict.fromkeys(self.pairs, b"new"))

    def test_a_store_that_is_closed(self):
        self.store.close()
        self.assertRaises(kvcore.ClosedError, next, Scrub(self.store).steps())
        self.assertRaises(kvcore.ClosedError, self.store.scrub)


class UnreadableTest(ScrubCase):
    FILES = BadBlocks(8192, 12288)

    def test_blocks_that_the_disk_cannot_read(self):
        found = self.store.scrub()
        self.assertEqual([item.file for item in found], ["0000000001.seg", "0000000002.seg", "0000000003.seg"])
        for item in found:
            self.assertTrue(item.offset <= 8192 and 12288 <= item.offset + item.length < 14000, item)
            self.assertIn("the disk could not read", item.what)


class ScrubberTest(ScrubCase):
    def setUp(self):
        super().setUp()
        self.reactor = HandReactor()
        self.patch(scrubber, "RATE", 1 << 20)
        self.metrics = Metrics()
        self.scrubber = Scrubber(self.store, self.metrics, self.reactor, self.reactor)
        self.events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.scrubber.start()
        self.addCleanup(self.scrubber.stop)

    def lines(self):
        return [formatEvent(event) for event in self.events if event["log_level"] is LogLevel.error]

    def one_pass(self):
        """Let it work until it rests; the time that took by the reactor's clock."""
        begun = self.reactor.seconds()
        while self.reactor.work:
            self.reactor.run_threads()
            calls = self.reactor.getDelayedCalls()
            if calls[0].getTime() - self.reactor.seconds() > 30:
                break
            self.reactor.advance(calls[0].getTime() - self.reactor.seconds())
        return self.reactor.seconds() - begun

    def test_pace(self):
        self.reactor.advance(59)
        self.assertEqual(self.reactor.work, [])
        self.reactor.advance(1)
        size = sum(os.path.getsize(path) - HEADER for path in self.paths)
        took = self.one_pass()
        self.assertEqual(self.scrubber.scrub.bytes, size)
        # The pauses are as long as reading at that rate takes, less what it took.
        self.assertTrue(0.5 * size < took * (1 << 20) <= size, took)
        # Once a day.
        self.reactor.advance(86400 - took - 1)
        self.assertEqual(self.reactor.work, [])
        self.reactor.advance(1.01)
        self.assertEqual(len(self.reactor.work), 1)
        self.one_pass()
        self.assertEqual(self.scrubber.scrub.bytes, 2 * size)

    def test_a_line_names_file_offset_and_keys(self):
        offset, size, _, key, _ = self.found[7]
        self.flip(self.paths[0], offset + 500)
        self.reactor.advance(60)
        self.one_pass()
        (line,) = self.lines()
        self.assertIn(f"scrub: 0000000001.seg: {size} bytes from {offset} on: ", line)
        self.assertTrue(line.endswith(f"; key {key.decode()}"), line)
        self.reactor.advance(86400)
        self.one_pass()
        self.assertEqual(len(self.lines()), 1)

    def test_a_flood_of_damage_is_a_few_lines(self):
        for offset, *_ in self.found[::2]:
            self.flip(self.paths[0], offset + 100)
        self.reactor.advance(60)
        self.one_pass()
        self.assertEqual(len(self.lines()), 21)
        self.assertIn("only counted", self.lines()[-1])
        self.assertEqual(len(self.scrubber.scrub.damage), len(self.found[::2]))

    def test_stop(self):
        self.reactor.advance(60)
        stopped = self.scrubber.stop()
        self.assertNoResult(stopped)
        self.reactor.run_threads()
        self.successResultOf(stopped)
        self.assertEqual((self.reactor.work, self.reactor.getDelayedCalls()), ([], []))

    def test_stop_in_a_pause(self):
        self.successResultOf(self.scrubber.stop())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_pass_that_fails_is_told_and_tried_again(self):
        link = self.paths[0] + "-link"
        os.rename(self.paths[0], link)
        os.symlink(os.path.basename(self.paths[0]), self.paths[0])
        self.reactor.advance(60)
        self.one_pass()
        (line,) = self.lines()
        self.assertIn("the scrub failed, tried again in 3600 s: cannot open", line)
        self.assertEqual(self.metrics.failures, [0, 1, 0, 0])
        os.rename(link, self.paths[0])
        self.reactor.advance(3600)
        self.one_pass()
        self.assertEqual((len(self.lines()), self.scrubber.scrub.damage), (1, []))

    def test_metrics(self):
        self.flip(self.paths[0], self.found[7][0] + 500)
        self.reactor.advance(60)
        self.one_pass()
        sources = Sources(self.metrics, self.store, self.scrubber.scrub, None, None, {})
        values = {family.name: family.read(sources) for family in FAMILIES if "scrub" in family.name}
        self.assertEqual(values, {
            "kvstore_scrubbed_bytes_total": sum(os.path.getsize(path) - HEADER for path in self.paths),
            "kvstore_scrub_damaged_ranges": 1,
            "kvstore_last_scrub_timestamp_seconds": self.scrubber.scrub.passed_at,
        })
