"""The server's maintenance, with a clock and threads that the tests move by hand."""

from twisted.internet.testing import EventLoggingObserver
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from kvcore.errors import StorageError
from kvnet.maintenance import Maintenance
from kvnet.metrics import Metrics
from tests.support import StoreCase
from tests.test_protocol import HandReactor
from tests.test_recovery import SMALL


class FakeJob:
    seconds = 0.01

    def __init__(self, trace, name, error=None):
        self.trace, self.name, self.error = trace, name, error

    def run(self):
        self.trace.append("run " + self.name)

    def finish(self):
        self.trace.append("finish " + self.name)
        if self.error:
            raise self.error


class FakeStore:
    """A store whose maintenance the test writes down."""

    def __init__(self):
        self.state, self.reason = "ok", None
        self.written_bytes = 0
        self.behind = False
        self.trace = []
        self.tasks = []
        self.expired = 0  # slices of keys past their deadline

    def sweep(self):
        self.expired -= self.expired > 0
        return self.expired > 0

    def maintenance(self, idle):
        self.trace.append("idle" if idle else "busy")
        return iter(self.tasks.pop(0)) if self.tasks else None

    def stats(self):
        return {"written_bytes": self.written_bytes, "compaction_behind": self.behind}

    def flush(self):
        self.trace.append("flush")

    def job(self, name, error=None):
        return FakeJob(self.trace, name, error)


class PacingTest(StoreCase):
    def setUp(self):
        super().setUp()
        self.store = FakeStore()
        self.reactor = HandReactor()
        self.metrics = Metrics()
        self.maintenance = Maintenance(self.store, self.metrics, self.reactor, self.reactor)
        self.maintenance.start()
        self.addCleanup(self.maintenance.stop)

    def test_each_job_is_run_in_a_thread_and_finished_after_a_flush(self):
        self.store.tasks = [[self.store.job("a"), self.store.job("b")]]
        self.reactor.advance(0.5)
        self.assertEqual(self.store.trace, ["busy"])
        self.reactor.run_threads()
        self.assertEqual(self.store.trace, ["busy", "run a", "flush", "finish a"])
        self.assertEqual(self.reactor.work, [])  # a pause first, for the clients
        self.reactor.advance(0.1)
        self.reactor.run_threads()
        self.assertEqual(self.store.trace[4:], ["run b", "flush", "finish b"])
        self.reactor.advance(0.1)
        self.assertEqual(self.store.trace[7:], [])

    def test_no_pauses_while_compaction_is_behind(self):
        self.store.behind = True
        self.store.tasks = [[self.store.job("a"), self.store.job("b")], [self.store.job("c")], [self.store.job("d")]]
        self.reactor.advance(0.5)
        for _ in range(3):
            self.reactor.run_threads()
            self.reactor.advance(0)
        self.assertEqual([entry for entry in self.store.trace if entry.startswith("run")], ["run a", "run b", "run c"])
        self.store.behind = False
        self.reactor.run_threads()
        self.reactor.advance(0.03)
        self.assertEqual(self.store.trace[-2:], ["finish d", "busy"])
        self.store.tasks = [[self.store.job("e")]]
        self.reactor.advance(0.4)
        self.assertEqual(self.reactor.work, [])
        self.reactor.advance(0.1)
        self.reactor.run_threads()
        self.assertEqual(self.store.trace[-1], "finish e")

    def test_idle_when_nothing_is_written_for_a_while(self):
        for _ in range(12):
            self.reactor.advance(0.5)
        self.assertEqual(self.store.trace[0], "busy")
        self.assertEqual(self.store.trace[-1], "idle")
        self.store.written_bytes += 1
        self.reactor.advance(0.5)
        self.assertEqual(self.store.trace[-1], "busy")

    def test_a_change_of_state_is_told_once(self):
        events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        for self.store.state, seconds in (("ok", 1), ("full", 1), ("ok", 9), ("full", 1), ("ok", 11), ("read-only", 1)):
            self.store.reason = "no more" if self.store.state == "read-only" else None
            self.reactor.pump([0.5] * (2 * seconds))
        self.assertEqual([(event["log_level"], formatEvent(event)) for event in events], [
            (LogLevel.error, "the store is full: the disk has no space left; values are refused, reads and deletes go on"),
            (LogLevel.info, "the store is ok"),
            (LogLevel.error, "the store is read-only: no more"),
        ])

    def test_many_expired_keys_go_in_slices_with_pauses(self):
        self.store.expired = 3
        self.reactor.advance(0.5)
        self.assertEqual(self.store.expired, 2)
        self.reactor.pump([0.01] * 2)
        self.assertEqual(self.store.expired, 0)
        self.store.expired = 2
        self.reactor.advance(0.5)
        self.successResultOf(self.maintenance.stop())
        self.reactor.pump([0.01] * 2)
        self.assertEqual(self.store.expired, 1)

    def test_failure_is_logged_and_tried_again_later(self):
        self.store.tasks = [[self.store.job("a", StorageError("no space")), self.store.job("never")], [self.store.job("b")]]
        self.reactor.advance(0.5)
        self.reactor.run_threads()
        self.reactor.pump([0.5] * 100)
        self.assertNotIn("run never", self.store.trace)
        self.assertEqual((self.reactor.work, self.metrics.failures), ([], [1, 0, 0, 0]))
        self.reactor.pump([0.5] * 30)
        self.reactor.run_threads()
        self.assertIn("finish b", self.store.trace)

    def test_stop_waits_for_the_job_under_way_and_begins_no_other(self):
        self.store.tasks = [[self.store.job("a"), self.store.job("never")]]
        self.reactor.advance(0.5)
        stopped = self.maintenance.stop()
        self.assertNoResult(stopped)
        self.reactor.run_threads()
        self.successResultOf(stopped)
        self.reactor.pump([0.5] * 10)
        self.assertEqual(self.store.trace[-1], "finish a")
        self.successResultOf(self.maintenance.stop())


class RealTest(StoreCase):
    def test_space_comes_back_by_itself(self):
        store = self.open(segment_size=SMALL, autoflush=False, compression=False)
        reactor = HandReactor()
        maintenance = Maintenance(store, Metrics(), reactor, reactor)
        maintenance.start()
        model = {}
        for step in range(6000):
            model[b"k%d" % (step % 500)] = bytes(600 + step % 7)
            store.put(b"k%d" % (step % 500), model[b"k%d" % (step % 500)])
            if step % 100 == 0:
                store.flush()
                reactor.advance(0.1)
                reactor.run_threads()
        for _ in range(2000):
            reactor.advance(0.1)
            reactor.run_threads()
        self.successResultOf(maintenance.stop())
        stats = store.stats()
        self.assertGreater(stats["compactions"], 0)
        self.assertLess(stats["disk_bytes"], 1.15 * sum(len(k) + len(v) for k, v in model.items()))
        self.assertEqual(dict(store.items()), model)
        store.close()
        self.assertEqual(self.contents(), model)
