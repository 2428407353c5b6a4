"""Records that are not in memory: the command that needs one waits, and nobody else does.

First with a file table that says what is in memory, and threads moved by hand; then with the kernel's own memory.
"""

import os
import resource

from kvnet.metrics import Metrics
from kvnet.residency import Residency
from kvnet.session import Session, command_rows
from kvnet.warmer import Warmer
from tests.probe import ColdFiles
from tests.support import StoreCase, resume
from tests.test_protocol import STATUS, ConnectionCase


class ColdCase(ConnectionCase):
    """Two clients of a store of which nothing is in memory but `hot`."""

    def open(self, **options):
        self.files = ColdFiles()
        return super().open(files=self.files, **options)

    def serve(self, keys=100, **options):
        super().serve(**options)
        self.pairs = {b"key%03d" % i: b"%d." % i * 500 for i in range(keys)}
        for key, value in [(b"hot", b"1"), *self.pairs.items()]:
            self.store.put(key, value)
        self.store.flush()
        self.factory.residency.doubt()
        self.files.chill()
        self.protocol, self.transport = self.connect()
        self.other, self.others = self.connect()
        self.heat(b"hot")

    def heat(self, key):
        """Bring a record into memory."""
        self.other.dataReceived(b"read %s\r" % key)
        self.settle()
        self.others.clear()
        self.metrics.cold_waits = 0

    def settle(self):
        """Until nothing is left to do."""
        for _ in range(1000):
            if not self.reactor.work and not self.reactor.getDelayedCalls():
                return
            self.reactor.run_threads()
            self.reactor.turn()
        self.fail("it does not end")

    def assertServed(self):
        """The other client is answered at once."""
        self.other.dataReceived(b"read hot\rstatus\r")
        self.assertEqual(self.others.taken(), b"1\r" + STATUS)

    def assertWaits(self, said, answers):
        """These commands are answered once the disk was read, and nobody else waits for it."""
        self.protocol.dataReceived(said)
        self.reactor.turn()
        self.assertEqual((self.transport.taken(), self.transport.producerState), (b"", "paused"))
        self.assertServed()
        self.settle()
        self.assertEqual((self.transport.taken(), self.transport.producerState), (answers, "producing"))


class WaitTest(ColdCase):
    def test_read(self):
        self.serve()
        self.assertWaits(b"read key007\r", self.pairs[b"key007"] + b"\r")
        self.assertEqual(self.metrics.cold_waits, 1)

    def test_what_is_in_memory_is_read_at_once(self):
        self.serve()
        self.assertServed()
        self.assertEqual(self.metrics.cold_waits, 0)

    def test_what_is_not_flushed_is_in_memory(self):
        self.serve()
        self.protocol.dataReceived(b"write new|1\rread new\r")
        self.assertEqual(self.transport.taken(), b"success\r1\r")

    def test_no_such_key_needs_no_disk(self):
        self.serve()
        self.protocol.dataReceived(b"read nothing\rwrite new|1\rdelete no\rstatus\r")
        self.assertEqual(self.transport.taken(), b"error\rsuccess\rerror\r" + STATUS)

    def test_write_and_delete_compare_the_key(self):
        self.serve()
        self.assertWaits(b"write key010|new\r", b"success\r")
        self.assertWaits(b"delete key050\r", b"success\r")
        self.assertEqual(self.store.get(b"key010"), b"new")
        self.assertIsNone(self.store.get(b"key050"))

    def test_without_doubt_nobody_is_asked(self):
        self.serve()
        self.factory.residency = Residency()
        protocol, transport = self.connect()
        asked = self.files.asked
        protocol.dataReceived(b"read key007\r")
        self.assertEqual(transport.taken(), self.pairs[b"key007"] + b"\r")
        self.assertEqual(self.files.asked, asked)

    def test_many_records_in_memory_end_the_doubt(self):
        self.serve()
        self.factory.residency.doubt(3)
        self.assertWaits(b"read key007\r", self.pairs[b"key007"] + b"\r")  # counted anew from here, and far
        self.assertServed()
        self.assertWaits(b"read key050\r", self.pairs[b"key050"] + b"\r")
        self.factory.residency = Residency()
        self.factory.residency.doubt(3)
        protocol, transport = self.connect()
        asked = self.files.asked
        for _ in range(5):
            protocol.dataReceived(b"read hot\r")
        self.assertEqual((transport.taken(), self.files.asked), (b"1\r" * 5, asked + 3))

    def test_replies_stay_in_order(self):
        self.serve()
        self.protocol.dataReceived(b"read hot\rread key031\rread hot\rwrite hot|2\rread key090\rread hot\rnope\r")
        self.assertEqual(self.transport.taken(), b"1\r")
        self.assertServed()
        self.settle()
        self.assertEqual(
            self.transport.taken(),
            b"%s\r1\rsuccess\r%s\r2\rerror\r" % (self.pairs[b"key031"], self.pairs[b"key090"]))

    def test_a_pipeline_is_brought_by_one_job(self):
        self.serve()
        said = b"".join(b"read %s\r\n" % key for key in list(self.pairs)[10:26])
        self.assertWaits(said, b"".join(value + b"\r" for value in list(self.pairs.values())[10:26]))
        self.assertEqual(self.metrics.cold_waits, 1)

    def test_long_pipeline_of_every_command(self):
        self.serve()
        said = b"".join(
            b"read %s\rdelete %s\rread %s\rwrite %s|x\rread %s\rstatus\r\rread no\r" % ((key,) * 5) for key in self.pairs)
        self.protocol.dataReceived(said)
        self.settle()
        self.assertEqual(
            self.transport.taken(),
            b"".join(
                b"%s\rsuccess\rerror\rsuccess\rx\r%serror\rerror\r" % (value, STATUS) for value in self.pairs.values()))
        self.assertLess(self.metrics.cold_waits, 40)

    def test_what_comes_meanwhile_waits_its_turn(self):
        self.serve()
        session = self.protocol.session
        session.feed(b"read key007\rre")
        session.feed(b"ad hot\rread key0")
        self.protocol.proceed()
        self.assertEqual(self.transport.taken(), b"")
        self.assertEqual(len(self.reactor.work), 1)
        self.settle()
        self.assertEqual(self.transport.taken(), self.pairs[b"key007"] + b"\r1\r")
        self.protocol.dataReceived(b"07\r")
        self.assertEqual(self.transport.taken(), self.pairs[b"key007"] + b"\r")

    def test_asked_once_though_it_is_gone_again(self):
        """Short memory must not keep a command waiting for ever."""
        self.serve()
        self.files.forgets = True
        self.assertWaits(b"read key007\r", self.pairs[b"key007"] + b"\r")
        self.assertEqual(self.metrics.cold_waits, 1)
        self.assertWaits(b"read key007\r", self.pairs[b"key007"] + b"\r")
        self.assertEqual(self.metrics.cold_waits, 2)

    def test_few_threads_are_taken(self):
        self.serve()
        clients = [self.connect() for _ in range(20)]
        for i, (protocol, _) in enumerate(clients):
            protocol.dataReceived(b"read key%03d\r" % (5 * i))
        self.assertLess(len(self.reactor.work), 10)
        self.settle()
        self.assertEqual(
            [transport.taken() for _, transport in clients], [self.pairs[b"key%03d" % (5 * i)] + b"\r" for i in range(20)])

    def test_reader_that_fails_is_counted_and_the_command_goes_on(self):
        class Job:
            def run(self):
                pass

            def finish(self):
                raise ZeroDivisionError

        self.serve()
        done = []
        Warmer(self.metrics, self.reactor).bring(Job(), lambda: done.append(True))
        self.reactor.run_threads()
        self.assertEqual((len(self.flushLoggedErrors(ZeroDivisionError)), done), (1, [True]))
        self.assertEqual(self.metrics.failures, [0, 0, 0, 1])

    def test_page_that_cannot_be_read(self):
        self.serve()
        self.files.forgets = True
        os.truncate(self.segment_paths()[0], 8192)
        self.assertWaits(b"read key090\rstatus\r", b"error\r" + STATUS)
        self.assertWaits(b"write key090|new\rread key090\r", b"success\rnew\r")
        self.assertServed()


class EndTest(ColdCase):
    """Connections that end while the disk is read."""

    def test_client_that_goes_away(self):
        self.serve()
        self.protocol.dataReceived(b"read key007\rwrite hot|2\r")
        self.protocol.connectionLost(None)
        self.settle()
        self.assertEqual(self.transport.taken(), b"")
        self.assertServed()

    def test_half_close(self):
        self.serve()
        self.protocol.dataReceived(b"read key007")
        self.protocol.readConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        self.assertServed()
        self.settle()
        self.assertEqual(self.transport.taken(), self.pairs[b"key007"] + b"\r")
        self.assertTrue(self.transport.disconnecting)

    def test_half_close_behind_a_command_that_waits(self):
        self.serve()
        self.protocol.dataReceived(b"read key007\rread hot")
        self.protocol.readConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        self.settle()
        self.assertEqual(self.transport.taken(), self.pairs[b"key007"] + b"\r1\r")
        self.assertTrue(self.transport.disconnecting)

    def test_drain_waits_for_the_disk(self):
        self.serve()
        self.protocol.dataReceived(b"read key007\r")
        drained = self.factory.drain()
        self.assertFalse(self.transport.disconnecting)
        self.settle()
        self.assertEqual(self.transport.taken(), self.pairs[b"key007"] + b"\r")
        self.assertTrue(self.transport.disconnecting)
        self.protocol.connectionLost(None)
        self.other.connectionLost(None)
        self.successResultOf(drained)

    def test_store_that_is_closed_before_the_disk_answers(self):
        """As after a stop that waited long enough."""
        self.serve()
        self.protocol.dataReceived(b"read key007\r")
        self.factory.abort()
        self.protocol.connectionLost(None)
        self.store.close()
        self.settle()
        self.assertEqual(self.transport.taken(), b"")

    def test_client_that_does_not_read(self):
        self.serve()
        self.transport.full = True
        self.protocol.dataReceived(b"read hot\rread key007\rread hot\r")
        self.assertEqual(self.transport.taken(), b"1\r")
        self.settle()
        self.assertEqual(self.transport.taken(), b"")
        self.transport.drain()
        self.settle()
        self.assertEqual(self.transport.taken(), self.pairs[b"key007"] + b"\r1\r")


class DurabilityTest(ColdCase):
    def test_replies_held_for_a_sync(self):
        self.serve(fsync="always")
        self.protocol.dataReceived(b"read hot\rwrite new|1\rread key007\rwrite key090|2\rread key090\r")
        self.assertEqual(self.transport.taken(), b"1\r")
        self.assertServed()
        self.settle()
        self.assertEqual(self.transport.taken(), b"success\r%s\rsuccess\r2\r" % self.pairs[b"key007"])
        self.assertEqual(self.store.unsynced, 0)

    def test_commands_taken_back_by_a_flush_that_fails(self):
        """They are done again; one that waited for the disk then waits anew."""
        self.serve()
        self.protocol.dataReceived(b"write big|%s\r" % (b"x" * 100_000))
        self.transport.clear()
        size = os.path.getsize(self.segment_paths()[0])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        self.protocol.dataReceived(b"write a|%s\rread a\rread key007\rwrite a|2\rread a\r" % (b"x" * 400_000))
        self.assertEqual(self.transport.taken(), b"error\rerror\r")
        self.assertServed()
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        self.settle()
        self.assertEqual(self.transport.taken(), self.pairs[b"key007"] + b"\rsuccess\r2\r")


class ListTest(ColdCase):
    def lists(self, said, answers):
        self.assertWaits(said, answers)
        self.assertGreater(self.metrics.cold_waits, 0)
        waits = self.metrics.cold_waits
        self.factory.residency = Residency()
        protocol, transport = self.connect()
        protocol.dataReceived(said)
        self.settle()
        self.assertEqual(transport.taken(), answers)
        self.assertEqual(self.metrics.cold_waits, waits)

    def test_keys(self):
        self.serve(keys=5000)
        self.lists(b"keys\r", b"\r".join([b"hot", *sorted(self.pairs)]) + b"\r")

    def test_reads(self):
        self.serve(keys=1000)
        self.lists(b"reads key\r", b"\r".join(self.pairs.values()) + b"\r")
        self.lists(b"reads key01\rread hot\r", b"\r".join(list(self.pairs.values())[10:20]) + b"\r1\r")
        self.lists(b"reads zzz\rread key500\r", b"\r" + self.pairs[b"key500"] + b"\r")

    def test_what_is_in_memory_is_no_reason_to_doubt(self):
        """A worker looks, as nobody knows before; but it asks for nothing, and the doubt ends when it would."""
        self.serve(keys=1000)
        self.settle()
        self.files.warm()
        fetched = self.files.fetched
        self.protocol.dataReceived(b"reads key\rkeys\r")
        self.settle()
        self.assertEqual(
            self.transport.taken(), b"\r".join([*self.pairs.values(), b"hot", *sorted(self.pairs)]) + b"\r")
        self.assertEqual((self.metrics.cold_waits, self.files.fetched), (0, fetched))
        self.factory.residency = Residency()
        self.factory.residency.doubt(900)
        protocol, transport = self.connect()
        asked = []
        for said in (b"read hot\r", b"reads key\r", b"read hot\r"):
            before = self.files.asked
            protocol.dataReceived(said)
            self.settle()
            asked.append(self.files.asked - before)
        self.assertTrue(asked[0] == 1 and asked[1] > 900 and asked[2] == 0, asked)

    def test_others_are_served_between_the_parts(self):
        self.serve(keys=1000)
        self.protocol.dataReceived(b"reads key\r")
        parts = [self.transport.taken()]
        while not parts[-1].endswith(b"\r999." + b"999." * 499 + b"\r"):
            self.assertServed()
            self.reactor.run_threads()
            self.reactor.turn()
            parts.append(self.transport.taken())
        self.assertEqual(b"".join(parts), b"\r".join(self.pairs.values()) + b"\r")

    def test_many_segments(self):
        self.serve()
        contents = {b"k%05d" % (i * 7919 % 3000): b"%d" % i * 100 for i in range(3000)}
        self.protocol.connectionLost(None)
        self.other.connectionLost(None)
        self.store.close()
        store = self.open(segment_size=65536)
        for key, value in contents.items():
            store.put(key, value)
        store.close()
        store = self.open(segment_size=65536)
        self.files.chill()
        metrics, residency = Metrics(), Residency()
        residency.doubt()
        session = Session(store, metrics, command_rows(metrics), residency=residency)
        replies = b""
        session.feed(b"reads k0\rkeys\r")
        beginning = session.job
        resume(session)
        # Of each order the names that the search finds, and those before and behind it.
        self.assertGreater(beginning.looked, 3 * len(beginning.orders))
        while session.unfinished:
            resume(session)
            replies += session.take()
        pairs = sorted((self.pairs | contents).items())
        self.assertEqual(
            replies,
            b"\r".join(value for key, value in pairs if key.startswith(b"k0")) + b"\r" +
            b"\r".join([b"hot", *(key for key, _ in pairs)]) + b"\r")
        self.assertGreater(metrics.cold_waits, 2)


class KernelTest(StoreCase):
    """Pages that the kernel really has dropped."""

    def session_over_dropped_pages(self):
        store = self.open(segment_size=1 << 20, compression=False)
        self.pairs = {b"key%05d" % i: os.urandom(500).hex().encode() for i in range(3000)}
        for key, value in self.pairs.items():
            store.put(key, value)
        store.sync()
        store.close()
        store = self.open(segment_size=1 << 20)
        for path in self.segment_paths():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        self.metrics = Metrics()
        return Session(store, self.metrics, command_rows(self.metrics))

    def faults(self):
        return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt

    def read(self, session, key):
        session.feed(b"read %s\r" % key)
        if session.job is not None:
            self.assertEqual(session.take(), b"")
            session.job.run()
            session.job.finish()
            session.warm()
            before = self.faults()
            session.resume()
            self.assertEqual(self.faults(), before)
        self.assertEqual(session.take(), self.pairs[key] + b"\r")

    def test_the_first_wait_is_noticed_and_the_next_ones_are_not_the_reactors(self):
        session = self.session_over_dropped_pages()
        before = self.faults()
        self.read(session, b"key00000")
        if self.faults() == before:
            self.skipTest("the files of the tests are in memory whatever the kernel is told")
        self.assertEqual(self.metrics.cold_waits, 0)
        self.read(session, b"key02500")
        self.assertEqual(self.metrics.cold_waits, 1)
        self.read(session, b"key02500")
        self.assertEqual(self.metrics.cold_waits, 1)
