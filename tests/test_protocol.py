"""Connections and group commit, with a clock and threads that the tests move by hand."""

import os

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from kvcore.crashfs import CrashFiles
from kvnet.commit import Commit
from kvnet.metrics import Metrics
from kvnet.protocol import TextFactory
from tests.support import HandSyncer, StoreCase

STATUS = b"well going our operation\r"


class HandReactor(Clock):
    """Time and worker threads that go on when the test says so."""

    def __init__(self):
        super().__init__()
        self.work = []

    def getThreadPool(self):
        return self

    def callInThreadWithCallback(self, done, function, *args, **kwargs):
        self.work.append((done, function, args, kwargs))

    def callFromThread(self, function, *args):
        function(*args)

    def soon(self, call):
        self.callLater(0, call)

    def turn(self):
        """One turn: what is due now, and not what that schedules."""
        for call in self.getDelayedCalls():
            if call.getTime() <= self.seconds():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)

    def run_threads(self):
        """Let the worker threads do what they have been given so far."""
        work, self.work = self.work, []
        for done, function, args, kwargs in work:
            done(True, function(*args, **kwargs))


class Transport(StringTransport):
    """A socket whose buffer fills when the test says so."""

    full = False
    aborted = False

    def write(self, data):
        super().write(data)
        if self.full:
            self.producer.pauseProducing()

    def drain(self):
        self.full = False
        self.producer.resumeProducing()

    def abortConnection(self):
        self.aborted = True

    def taken(self):
        data = self.value()
        self.clear()
        return data


class ConnectionCase(StoreCase):
    def serve(self, fsync="no", **options):
        self.reactor = HandReactor()
        self.metrics = Metrics()
        self.store = self.open(fsync=fsync, autoflush=False)
        self.commit = Commit(self.store, self.metrics, self.reactor, HandSyncer(self.reactor), self.reactor.soon)
        self.factory = TextFactory(self.store, self.commit, self.metrics, self.reactor, self.reactor.soon, **options)
        self.commit.start()
        self.addCleanup(self._end)

    def _end(self):
        stopped = self.commit.stop()
        self.reactor.run_threads()  # a test that failed half-way may have left a sync under way
        return stopped

    def connect(self):
        protocol = self.factory.buildProtocol(None)
        transport = Transport()
        protocol.makeConnection(transport)
        return protocol, transport


class ConnectionTest(ConnectionCase):
    def test_replies_go_out_at_once(self):
        self.serve()
        protocol, transport = self.connect()
        protocol.dataReceived(b"write a|1\rread a\r")
        self.assertEqual(transport.value(), b"success\r1\r")

    def test_half_close_runs_the_last_command_and_closes(self):
        self.serve()
        protocol, transport = self.connect()
        protocol.dataReceived(b"write a|1\rread a")
        self.assertEqual(transport.taken(), b"success\r")
        protocol.readConnectionLost()
        self.assertEqual(transport.taken(), b"1\r")
        self.assertTrue(transport.disconnecting)

    def test_others_have_their_turn_between_the_parts_of_a_list(self):
        self.serve()
        for i in range(9000):
            self.store.put(b"key %05d" % i, b"v")
        protocol, transport = self.connect()
        protocol.dataReceived(b"keys\r")
        parts = [transport.taken()]
        while not parts[-1].endswith(b"key 08999\r"):
            self.reactor.run_threads()  # where memory is short, it waits for the disk now and then
            self.reactor.turn()
            parts.append(transport.taken())
        self.assertEqual(len(b"".join(parts)), 9000 * 10)
        self.assertLess(max(map(len, parts)), 20_000)
        protocol.dataReceived(b"keys\r")
        protocol.connectionLost(None)
        self.reactor.turn()  # nothing is left that would go on

    def test_others_have_their_turn_in_a_long_pipeline(self):
        """And what the client sends on is not read before."""
        self.serve(max_value_size=1 << 20)
        protocol, transport = self.connect()
        said = b"".join(b"write k%d|%s\r" % (i, b"v" * 2000) for i in range(20_000))
        protocol.dataReceived(said)
        answered = [transport.taken().count(b"\r")]
        while sum(answered) < 20_000:
            self.assertEqual(transport.producerState, "paused")
            self.reactor.run_threads()
            self.reactor.turn()
            answered.append(transport.taken().count(b"\r"))
        self.assertGreater(len(answered), 3)
        self.assertGreater(min(answered), 0)
        self.assertGreaterEqual(self.metrics.turns_over, len(answered) - 1)
        self.assertEqual(transport.producerState, "producing")
        self.assertEqual(len(self.store), 20_000)

    def test_client_that_does_not_read_is_not_read(self):
        self.serve()
        self.store.put(b"big", b"v" * 300_000)
        protocol, transport = self.connect()
        transport.full = True
        protocol.dataReceived(b"read big\r" * 100 + b"write z|1\r")
        self.assertEqual(transport.producerState, "paused")
        self.assertLess(len(transport.taken()), 2_000_000)
        self.assertIsNone(self.store.get(b"z"))
        transport.drain()
        self.reactor.pump([0] * 50)
        self.assertEqual(transport.producerState, "producing")
        self.assertTrue(transport.taken().endswith(b"success\r"))
        self.assertEqual(self.store.get(b"z"), b"1")

    def test_half_close_while_the_client_does_not_read(self):
        self.serve()
        self.store.put(b"big", b"v" * 600_000)
        protocol, transport = self.connect()
        transport.full = True
        protocol.dataReceived(b"read big\r" * 5 + b"status")
        protocol.readConnectionLost()
        self.assertFalse(transport.disconnecting)
        transport.drain()
        self.reactor.advance(0)
        self.assertTrue(transport.value().endswith(STATUS))
        self.assertEqual(transport.value().count(b"\r"), 6)
        self.assertTrue(transport.disconnecting)

    def test_maximum_of_connections(self):
        self.serve(max_connections=2)
        first, _ = self.connect()
        self.connect()
        self.assertIsNone(self.factory.buildProtocol(None))
        self.assertEqual((self.metrics.connections, self.metrics.connections_refused), (2, 1))
        first.connectionLost(None)
        self.connect()
        self.assertEqual((self.metrics.connections, self.metrics.connections_opened), (2, 3))

    def test_idle_connection_is_closed_and_a_busy_one_is_not(self):
        self.serve(idle_timeout=60)
        forgotten, idle = self.connect()
        protocol, busy = self.connect()
        self.reactor.advance(40)
        protocol.dataReceived(b"status\r")
        self.reactor.advance(40)
        self.assertTrue(idle.disconnecting)
        self.assertFalse(busy.disconnecting)
        forgotten.connectionLost(None)
        protocol.connectionLost(None)
        self.assertEqual([call for call in self.reactor.getDelayedCalls() if call.getTime() > 100], [])

    def test_drain_waits_for_replies_and_closings(self):
        self.serve(fsync="always")
        protocol, transport = self.connect()
        idle, idle_transport = self.connect()
        protocol.dataReceived(b"write a|1\r")
        drained = self.factory.drain()
        self.assertTrue(idle_transport.disconnecting)
        self.assertFalse(transport.disconnecting)
        idle.connectionLost(None)
        self.reactor.advance(0)
        self.reactor.run_threads()
        self.assertEqual(transport.value(), b"success\r")
        self.assertTrue(transport.disconnecting)
        self.assertNoResult(drained)
        protocol.connectionLost(None)
        self.successResultOf(drained)
        self.successResultOf(self.factory.drain())

    def test_abort_cuts_what_is_left(self):
        self.serve()
        _, transport = self.connect()
        self.factory.abort()
        self.assertTrue(transport.aborted)


class GroupCommitTest(ConnectionCase):
    def crowd(self, seconds):
        """30 clients of a disk on which a sync takes so long."""
        self.serve(fsync="always")
        self.commit.typical = seconds
        return [self.connect() for _ in range(30)]

    def write(self, clients):
        for protocol, _ in clients:
            protocol.dataReceived(b"write %d|1\r" % id(protocol))

    def test_no_reply_to_a_write_before_its_sync(self):
        self.serve(fsync="always")
        protocol, transport = self.connect()
        protocol.dataReceived(b"status\rwrite a|1\rstatus\r")
        self.assertEqual(transport.taken(), STATUS)
        self.reactor.rightNow += 5
        self.assertEqual(self.commit.unsynced_age, 0)
        self.reactor.advance(0)
        self.assertEqual(transport.taken(), b"")
        self.assertGreater(self.store.unsynced, 0)
        self.reactor.advance(3)
        self.assertEqual(self.commit.unsynced_age, 3)
        self.reactor.run_threads()
        self.assertEqual(transport.taken(), b"success\r" + STATUS)
        self.assertEqual((self.store.unsynced, self.commit.unsynced_age), (0, 0))

    def test_one_sync_covers_a_turn_and_the_next_what_came_meanwhile(self):
        self.serve(fsync="always")
        clients = [self.connect() for _ in range(3)]
        for i in (0, 1):
            clients[i][0].dataReceived(b"write k%d|1\r" % i)
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.work), 1)
        clients[0][0].dataReceived(b"write again|1\r")
        clients[2][0].dataReceived(b"write k2|1\r")
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.work), 1)
        self.reactor.run_threads()
        self.assertEqual([transport.taken() for _, transport in clients], [b"success\r", b"success\r", b""])
        self.assertEqual((self.store.unsynced > 0, self.commit.unsynced_age), (True, 0))
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.work), 1)
        self.reactor.run_threads()
        self.assertEqual([transport.taken() for _, transport in clients], [b"success\r", b"", b"success\r"])
        self.assertEqual((self.store.unsynced, self.reactor.work), (0, []))
        within_1, within_2, *_, count, total = self.metrics.group_numbers()
        self.assertEqual((within_1, within_2, count, total), (0, 2, 2, 4))

    def test_one_sync_covers_all_that_a_client_sent_before_it(self):
        self.serve(fsync="always")
        protocol, transport = self.connect()
        for _ in range(3):
            protocol.dataReceived(b"write a|1\r")
        self.reactor.advance(0)
        self.reactor.run_threads()
        self.assertEqual(transport.taken(), b"success\r" * 3)

    def test_sync_that_begins_before_the_answers_of_the_last_one_proves_nothing_yet(self):
        self.serve(fsync="everysec")
        clients = [self.connect() for _ in range(12)]
        self.write(clients[:1])
        self.reactor.pump([0.25] * 14)
        self.assertEqual((len(self.reactor.work), self.commit.holding), (1, True))
        self.write(clients)
        self.reactor.advance(1)
        self.reactor.run_threads()
        self.assertEqual((len(self.reactor.work), self.commit.unsynced_age), (1, 3.5))
        self.reactor.run_threads()
        self.assertEqual(self.commit.unsynced_age, 0)

    def test_short_syncs_are_done_in_the_reactor(self):
        clients = self.crowd(seconds=0.0004)
        for _ in range(2):
            self.commit.typical = 0.0004  # however long the one before took
            self.write(clients)
            self.assertEqual([transport.taken() for _, transport in clients], [b""] * 30)
            self.reactor.advance(0)
            self.assertEqual((self.store.unsynced, self.reactor.work), (0, []))
            self.assertEqual([transport.taken() for _, transport in clients], [b"success\r"] * 30)

    def test_a_slow_disk_is_given_all_that_there_is(self):
        clients = self.crowd(seconds=0.01)
        for _ in range(2):
            self.write(clients)
            self.assertEqual(self.reactor.work, [])
            self.reactor.advance(0)
            self.assertEqual(len(self.reactor.work), 1)
            self.reactor.run_threads()
        self.assertEqual([transport.taken() for _, transport in clients], [b"success\r" * 2] * 30)

    def test_a_slow_disk_is_at_work_while_those_who_waited_are_answered(self):
        first, second = self.crowd(seconds=0.01)[:2]
        self.write([first])
        self.reactor.advance(0)
        self.write([second])
        under_way = []
        first[1].write = lambda data: under_way.append(len(self.reactor.work))
        self.reactor.run_threads()
        self.assertEqual(under_way, [1])
        self.reactor.run_threads()
        self.assertEqual((second[1].taken(), self.store.unsynced, self.reactor.work), (b"success\r", 0, []))

    def test_client_that_went_away_does_not_hold_up_the_others(self):
        self.serve(fsync="always")
        gone, _ = self.connect()
        protocol, transport = self.connect()
        gone.dataReceived(b"write a|1\r")
        protocol.dataReceived(b"write b|1\r")
        gone.connectionLost(None)
        self.reactor.advance(0)
        self.reactor.run_threads()
        self.assertEqual(transport.taken(), b"success\r")

    def test_failed_sync_acknowledges_nothing_and_ends_the_writing(self):
        self.serve(fsync="always")
        protocol, transport = self.connect()
        later, later_transport = self.connect()
        protocol.dataReceived(b"write a|1\rread a\r")
        self.break_the_disk()
        self.reactor.advance(0)
        later.dataReceived(b"write b|1\r")
        self.reactor.run_threads()
        self.assertEqual(transport.taken(), b"error\r1\r")
        self.assertEqual(later_transport.taken(), b"error\r")
        self.assertEqual((self.store.state, self.metrics.sync_failures), ("read-only", 1))
        later.dataReceived(b"write c|1\rread a\rdelete a\r")
        self.assertEqual(later_transport.taken(), b"error\r1\rerror\r")
        self.assertEqual(len(self.flushLoggedErrors()), 0)
        self.reactor.advance(0)
        self.assertEqual(self.reactor.work, [])

    def break_the_disk(self):
        """Make the next fdatasync of the log fail as a broken disk does; what was written before stays readable."""
        path = self.segment_paths()[0]
        fd = next(int(name) for name in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{name}") and os.path.realpath(f"/proc/self/fd/{name}") == path)
        # A pipe cannot be synced: fdatasync answers EINVAL.
        read_end, write_end = os.pipe()
        os.dup2(write_end, fd)
        os.close(read_end)
        os.close(write_end)


class QuickDiskTest(ConnectionCase):
    def open(self, **options):
        """On a file table in memory, which syncs in a few microseconds."""
        self.dir = "/data"
        return super().open(files=CrashFiles(), **options)

    def test_that_syncs_are_short_is_learnt(self):
        self.serve(fsync="always")
        protocol, transport = self.connect()
        in_thread = 0
        for _ in range(100):
            protocol.dataReceived(b"write a|1\r")
            self.reactor.advance(0)
            in_thread += len(self.reactor.work)
            self.reactor.run_threads()
            self.assertEqual(transport.taken(), b"success\r")
        self.assertGreater(in_thread, 0)
        self.assertLess(in_thread, 100)


class EverysecTest(ConnectionCase):
    def test_writes_do_not_wait_and_are_synced_within_about_a_second(self):
        self.serve(fsync="everysec")
        protocol, transport = self.connect()
        protocol.dataReceived(b"write a|1\r")
        self.assertEqual(transport.taken(), b"success\r")
        self.assertGreater(self.store.unsynced, 0)
        self.reactor.pump([0.25] * 4)
        self.assertEqual(self.commit.unsynced_age, 1)
        self.reactor.run_threads()
        self.assertEqual((self.store.unsynced, self.commit.unsynced_age), (0, 0))
        self.assertGreater(self.metrics.sync_good_at, 0)

    def test_they_are_synced_by_a_thread_however_short_syncs_are(self):
        """What a second has brought may be much."""
        self.serve(fsync="everysec")
        self.commit.typical = 0.0001
        protocol, _ = self.connect()
        protocol.dataReceived(b"write a|1\r")
        self.reactor.pump([0.25] * 4)
        self.assertEqual(len(self.reactor.work), 1)
        self.reactor.run_threads()

    def test_writers_wait_while_the_last_good_sync_is_too_old(self):
        self.serve(fsync="everysec")
        protocol, transport = self.connect()
        protocol.dataReceived(b"write a|1\r")
        self.reactor.pump([0.25] * 10)
        self.assertEqual(len(self.reactor.work), 1)
        transport.clear()
        protocol.dataReceived(b"write b|1\rread b\r")
        self.assertEqual(transport.taken(), b"")
        reader, reader_transport = self.connect()
        reader.dataReceived(b"read b\r")
        self.assertEqual(reader_transport.taken(), b"1\r")
        self.reactor.run_threads()  # the sync that was under way; it began before b was written
        self.assertEqual(transport.taken(), b"")
        self.reactor.run_threads()
        self.assertEqual(transport.taken(), b"success\r1\r")
        protocol.dataReceived(b"write c|1\r")
        self.assertEqual(transport.taken(), b"success\r")

    def test_an_idle_store_is_not_late(self):
        self.serve(fsync="everysec")
        self.reactor.pump([0.25] * 100)
        self.reactor.run_threads()
        self.assertEqual(self.commit.unsynced_age, 0)
        protocol, transport = self.connect()
        protocol.dataReceived(b"write a|1\r")
        self.assertEqual((transport.taken(), self.commit.unsynced_age), (b"success\r", 0))

    def test_stop_waits_for_the_sync_under_way(self):
        self.serve(fsync="everysec")
        protocol, _ = self.connect()
        protocol.dataReceived(b"write a|1\r")
        self.reactor.pump([0.25] * 5)
        stopped = self.commit.stop()
        self.assertNoResult(stopped)
        self.reactor.run_threads()
        self.successResultOf(stopped)
        self.reactor.pump([0.25] * 20)
        self.assertEqual(self.reactor.work, [])


class NoSyncTest(ConnectionCase):
    def test_nobody_syncs(self):
        self.serve(fsync="no")
        protocol, transport = self.connect()
        protocol.dataReceived(b"write a|1\r")
        self.reactor.pump([0.25] * 50)
        self.assertEqual((transport.taken(), self.reactor.work), (b"success\r", []))
        self.assertGreater(self.store.unsynced, 0)
