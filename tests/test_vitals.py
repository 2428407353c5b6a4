"""What is looked at for the metrics: the process, a disk that may not answer, how late the reactor is."""

import mmap
import os
import time

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvnet.metrics import Metrics
from kvnet.vitals import PATIENCE, PERIOD, Disk, Lag, Process
from tests.support import StoreCase
from tests.test_protocol import HandReactor


class ProcessTest(SynchronousTestCase):
    def test_figures(self):
        process = Process()
        self.assertTrue(1 << 20 < process.private_bytes < process.resident_bytes, process.__dict__)
        self.assertTrue(0 < process.started_at < time.time())
        private, cpu = process.private_bytes, process.cpu_seconds
        kept = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not memory that was freed before
        self.addCleanup(kept.close)
        for _ in range(len(kept) >> 16):
            kept.write(bytes(1 << 16))
        process.look()
        self.assertGreater(process.private_bytes - private, len(kept) // 2)
        self.assertGreater(process.cpu_seconds, cpu)


class DiskTest(StoreCase):
    def setUp(self):
        super().setUp()
        self.reactor = HandReactor()
        self.store = self.open()
        self.disk = Disk(self.store, self.dir, self.reactor)

    def test_figures(self):
        looked = self.disk.look()
        self.assertNoResult(looked)
        self.reactor.run_threads()
        self.successResultOf(looked)
        space = os.statvfs(self.dir)
        self.assertEqual((self.disk.size_bytes, self.disk.backup_at), (space.f_blocks * space.f_frsize, 0))
        self.assertTrue(0 < self.disk.free_bytes < self.disk.size_bytes)
        self.store.backup(os.path.abspath(self.mktemp()))
        self.disk.look()
        self.reactor.run_threads()
        self.assertEqual(self.disk.backup_at, self.store.last_backup)
        self.assertGreater(self.disk.backup_at, 0)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_disk_that_does_not_answer_is_not_waited_for(self):
        looked = self.disk.look()
        self.reactor.advance(PATIENCE)
        self.successResultOf(looked)
        self.successResultOf(self.disk.look())
        self.assertEqual((len(self.reactor.work), self.disk.size_bytes), (1, 0))
        self.reactor.run_threads()
        self.assertGreater(self.disk.size_bytes, 0)
        self.assertNoResult(self.disk.look())

    def test_a_directory_that_is_gone(self):
        self.disk = Disk(self.store, self.mktemp(), self.reactor)
        looked = self.disk.look()
        self.reactor.run_threads()
        self.successResultOf(looked)
        self.assertEqual(self.disk.size_bytes, 0)

    def test_stop_waits_for_the_answer(self):
        self.disk.look()
        stopped = self.disk.stop()
        self.assertNoResult(stopped)
        self.reactor.run_threads()
        self.successResultOf(stopped)
        self.successResultOf(self.disk.look())
        self.successResultOf(self.disk.stop())
        self.assertEqual(self.reactor.work, [])


class LagTest(SynchronousTestCase):
    def test_how_late_calls_come(self):
        clock, metrics = Clock(), Metrics()
        lag = Lag(metrics, clock)
        lag.start()
        for seconds in (PERIOD, PERIOD + 0.03, PERIOD + 0.6):
            clock.advance(seconds)
        *_, count, total = metrics.lag_numbers()
        self.assertEqual((count, round(total, 9)), (3, 0.63))
        lag.stop()
        self.assertEqual(clock.getDelayedCalls(), [])
