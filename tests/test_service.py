"""Starting and stopping: the order inside the server, and what listens where."""

import errno
import os
import signal
import subprocess
import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

import kvcore
from kvcore.errors import LockedError, StorageError
from kvnet import service, tap
from kvnet.listen import Listener
from kvnet.process import StartError
from kvnet.vitals import PERIOD
from tests.daemon import environment


class FakeAddress:
    def __init__(self, host, port):
        self.host, self.port = host, port


class FakePort:
    def __init__(self, reactor, host, port, factory):
        self._reactor, self._address, self.factory = reactor, FakeAddress(host, port), factory
        reactor.open_ports.append((host, port))

    def getHost(self):
        return self._address

    def stopReading(self):
        pass

    def connectionLost(self, reason):
        self._reactor.open_ports.remove((self._address.host, self._address.port))

    def stopListening(self):
        self._reactor.steps.append("stop listening")
        self.connectionLost(None)
        return succeed(None)


class FakeReactor(Clock):
    """A reactor whose binds fail as told, and whose worker threads work when told."""

    def __init__(self):
        super().__init__()
        self.refused = {}  # (interface, port): errno
        self.open_ports = []
        self.free_ports = [5001, 5002, 5003]
        self.steps = []
        self.work = []
        self.hub = self
        self.gathers = None

    def listenTCP(self, port, factory, backlog, interface):
        port = port or self.free_ports.pop(0)
        code = self.refused.get((interface, port))
        if code is not None:
            raise CannotListenError(interface, port, OSError(code, os.strerror(code)))
        return FakePort(self, interface, port, factory)

    def soon(self, call):
        self.callLater(0, call)

    def getThreadPool(self):
        return self

    def callInThreadWithCallback(self, result, function):
        self.work.append((result, function))

    def callFromThread(self, function, *arguments):
        function(*arguments)

    def start(self):
        """As of a thread pool."""

    def stop(self):
        """As of a thread pool."""

    def do_work(self):
        for result, function in self.work:
            result(True, function())


class FakeParts:
    """The store, the committer and the factory in one, all writing down what is done to them."""

    fsync = "everysec"
    state = "ok"
    gathers = object()

    def __init__(self, steps):
        self.steps = steps
        self.recovery = {"seconds": 0.25, "records": 3, "messages": ["cut 7 bytes", "kept 9 bytes aside"]}
        self.drained = succeed(None)
        self.stop_error = self.close_error = None

    def stats(self):
        return {"keys": 3, "written_bytes": 0, "compaction_behind": False}

    def sweep(self):
        return False

    def maintenance(self, idle):
        return None

    def close(self):
        self.steps.append("close the store")
        if self.close_error:
            raise self.close_error

    def start(self):
        self.steps.append("start committing")

    def stop(self):
        self.steps.append("stop committing")
        if self.stop_error:
            raise self.stop_error
        return succeed(None)

    def drain(self):
        self.steps.append("drain")
        return self.drained

    def abort(self):
        self.steps.append("abort")


class FakeScrubber:
    scrub = None

    def start(self):
        pass

    def stop(self):
        return succeed(None)


class ServerTests(SynchronousTestCase):
    """The order of things, with a stand-in for every part."""

    def setUp(self):
        self.reactor = FakeReactor()
        self.steps = self.reactor.steps
        self.parts = FakeParts(self.steps)
        self.opened = None
        self.open_error = None
        self.patch(kvcore, "open", self.open)
        self.patch(service, "Ports", lambda reactor, metrics: reactor)
        self.patch(service, "BackgroundThreads", lambda: self.reactor)
        self.patch(service, "Scrubber", lambda store, metrics, reactor, threads: FakeScrubber())
        self.patch(service, "Commit", lambda store, metrics, reactor, syncer, soon: self.parts)
        self.patch(service, "Exposition", lambda collector: None)
        self.patch(service, "TextFactory", lambda store, commit, metrics, reactor, soon, **limits: self.parts)
        self.events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)

    def open(self, path, **settings):
        self.steps.append(f"open {path}")
        if self.open_error:
            raise self.open_error
        self.opened = settings
        return self.parts

    def server(self, *words):
        options = tap.Options()
        options.parseOptions(["--data-dir=d", *words])
        return service.Server(self.reactor, options)

    def start(self, *words):
        server = self.server(*words)
        server.privilegedStartService()
        server.startService()
        return server

    def lines(self, level=LogLevel.info):
        return [formatEvent(event) for event in self.events if event["log_level"] is level]

    def test_ports_first_then_the_store(self):
        server = self.server()
        server.privilegedStartService()
        ports = [("127.0.0.1", 8080), ("::1", 8080), ("127.0.0.1", 9464), ("::1", 9464)]
        self.assertEqual((self.reactor.open_ports, self.steps), (ports, []))
        server.startService()
        self.assertEqual(self.steps, ["open d", "start committing"])

    def test_the_store_gets_the_options(self):
        self.start("--fsync=always", "--segment-size=1M", "--max-value-size=2M")
        del self.opened["executor"]
        self.assertEqual(self.opened, {
            "fsync": "always", "segment_size": 1 << 20, "max_value_size": 2 << 20, "compression": True})

    def test_the_hub_gathers_when_the_committer_says_so(self):
        self.start()
        self.assertIs(self.reactor.gathers, self.parts.gathers)

    def test_one_line_per_start_and_per_finding_of_the_recovery(self):
        self.start("--text=0", "--metrics=off")
        self.assertEqual(
            self.lines(),
            [
                f"kvstore {kvcore.__version__}: data in {os.path.abspath('d')}, fsync everysec, "
                "text on 127.0.0.1:5001 and [::1]:5001; 3 keys, opened in 0.250 s"
            ],
        )
        self.assertEqual(self.lines(LogLevel.warn), ["recovery: cut 7 bytes", "recovery: kept 9 bytes aside"])

    def test_off_does_not_listen(self):
        self.start("--text=off", "--metrics=off")
        self.assertEqual(self.reactor.open_ports, [])

    def test_store_that_cannot_be_opened(self):
        self.open_error = LockedError("d is open in process 7; stop it")
        error = self.assertRaises(StartError, self.start)
        self.assertEqual(str(error), "d is open in process 7; stop it")
        self.assertEqual(self.reactor.open_ports, [])
        self.assertEqual(self.lines(), [])

    def test_port_that_cannot_be_bound_leaves_the_store_alone(self):
        self.reactor.refused["127.0.0.1", 9464] = errno.EADDRINUSE
        error = self.assertRaises(StartError, self.start)
        self.assertEqual(
            str(error),
            "cannot listen on 127.0.0.1:9464: Address already in use; choose another place with --metrics",
        )
        self.assertEqual((self.reactor.open_ports, self.steps), ([], []))

    def test_a_bug_at_the_start_leaves_nothing_open_either(self):
        def broken(*arguments, **limits):
            raise ZeroDivisionError

        self.patch(service, "TextFactory", broken)
        self.assertRaises(ZeroDivisionError, self.start)
        self.assertEqual((self.reactor.open_ports, self.steps), ([], ["open d", "close the store"]))

    def test_order_of_a_stop(self):
        server = self.start("--metrics=off")
        self.steps.clear()
        self.successResultOf(server.stopService())
        self.assertEqual(self.steps, ["stop listening"] * 2 + ["drain", "stop committing", "close the store"])
        self.assertEqual(self.lines()[1:], ["kvstore stopped"])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_stop_waits_for_clients_to_take_their_replies(self):
        self.parts.drained = Deferred()
        server = self.start("--metrics=off", "--text=off")
        stopped = server.stopService()
        self.assertEqual(self.steps[-1], "drain")
        self.parts.drained.callback(None)
        self.successResultOf(stopped)
        self.assertNotIn("abort", self.steps)

    def test_a_stop_cuts_off_clients_that_do_not_take_their_replies(self):
        self.parts.drained = Deferred()
        server = self.start("--metrics=off", "--text=off")
        stopped = server.stopService()
        self.reactor.advance(service.LINGER_SECONDS)
        self.successResultOf(stopped)
        self.assertEqual(self.steps[-4:], ["drain", "abort", "stop committing", "close the store"])
        self.assertEqual(self.lines()[1:], ["kvstore stopped, slow clients were cut off"])
        self.parts.drained.callback(None)  # what was cut off closes in the end

    def test_the_store_is_closed_whatever_fails_before(self):
        self.parts.drained = Deferred()
        self.parts.drained.errback(ZeroDivisionError())
        self.parts.stop_error = StorageError("the disk is gone")
        server = self.start("--metrics=off")
        self.successResultOf(server.stopService())
        self.assertEqual(self.steps[-3:], ["drain", "stop committing", "close the store"])
        self.assertIn("the disk is gone", self.lines(LogLevel.critical))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_store_that_does_not_close_cleanly_is_told(self):
        self.parts.close_error = StorageError("d: fdatasync failed")
        self.successResultOf(self.start().stopService())
        self.assertEqual(self.lines(LogLevel.critical), ["d: fdatasync failed"])

    def test_a_stop_without_a_start(self):
        self.successResultOf(self.server().stopService())
        self.assertEqual(self.steps, [])

    def test_background_work_runs_in_a_thread_and_finishes_here_before_the_store_closes(self):
        class Job:
            def run(job):
                self.steps.append("run")

            def finish(job):
                self.steps.append("finish")

        server = self.start("--metrics=off", "--text=off")
        self.steps.clear()
        self.opened["executor"](Job())
        self.assertEqual(self.steps, [])
        stopped = server.stopService()
        self.assertEqual(self.steps, ["drain", "stop committing"])
        self.reactor.do_work()
        self.successResultOf(stopped)
        self.assertEqual(self.steps[2:], ["run", "finish", "close the store"])

    def test_the_disk_is_asked_no_more_before_the_store_closes(self):
        server = self.start("--metrics=off", "--text=off")
        server._disk.look()
        self.steps.clear()
        stopped = server.stopService()
        self.assertEqual(self.steps, ["drain"])
        self.reactor.do_work()
        self.successResultOf(stopped)
        self.assertEqual(self.steps[-1], "close the store")

    def test_lag_is_watched(self):
        server = self.start("--metrics=off", "--text=off")
        self.reactor.advance(1)
        self.assertEqual(server._metrics.lag_numbers()[-1], 1 - PERIOD)

    def test_background_work_that_fails_is_logged(self):
        class Job:
            def __init__(job, error):
                job.error = error

            def run(job):
                pass

            def finish(job):
                raise job.error

        server = self.start()
        for error in (StorageError("cannot sync d: no"), ZeroDivisionError()):
            self.opened["executor"](Job(error))
        self.reactor.do_work()
        self.assertIn("cannot sync d: no", self.lines(LogLevel.critical))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(server._metrics.failures, [0, 0, 2, 0])
        self.successResultOf(server.stopService())


class ListenerTests(TestCase):
    """What is bound for the word of an option."""

    def bind(self, where, using=reactor):
        listener = Listener(using, "text", where, Factory())
        listener.privilegedStartService()
        self.addCleanup(listener.stopService)
        return listener

    def test_a_free_port_is_the_same_for_both_families(self):
        first, second = self.bind(0).addresses
        self.assertEqual(first.removeprefix("127.0.0.1:"), second.removeprefix("[::1]:"))
        self.assertGreater(int(first.removeprefix("127.0.0.1:")), 0)

    def test_machine_without_ipv6(self):
        for code in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            fake = FakeReactor()
            fake.refused["::1", 5001] = code
            self.assertEqual(self.bind(0, fake).addresses, ["127.0.0.1:5001"])

    def test_a_free_port_that_is_taken_in_the_other_family(self):
        fake = FakeReactor()
        fake.refused["::1", 5001] = fake.refused["::1", 5002] = errno.EADDRINUSE
        self.assertEqual(self.bind(0, fake).addresses, ["127.0.0.1:5003", "[::1]:5003"])
        self.assertEqual(fake.open_ports, [("127.0.0.1", 5003), ("::1", 5003)])

    def test_a_port_that_is_taken_in_the_other_family(self):
        fake = FakeReactor()
        fake.refused["::1", 8080] = errno.EADDRINUSE
        error = self.assertRaises(StartError, self.bind, 8080, fake)
        self.assertIn("cannot listen on [::1]:8080: Address already in use", str(error))
        self.assertEqual(fake.open_ports, [])

    def test_endpoints(self):
        (address,) = self.bind("tcp:0:interface=127.0.0.1").addresses
        self.assertRegex(address, r"^127\.0\.0\.1:\d+$")
        path = self.mktemp()[-80:].replace("/", "-")  # a socket's path is 107 bytes at most
        self.assertEqual(self.bind(f"unix:{path}").addresses, [f"unix:{path}"])

    def test_release_closes_at_once_and_removes_a_socket_file(self):
        path = self.mktemp()[-80:].replace("/", "-")
        listener = self.bind(f"unix:{path}")
        self.assertTrue(os.path.exists(path))
        listener.release()
        self.assertFalse(os.path.lexists(path) or os.path.lexists(path + ".lock"))

    def test_endpoints_that_mean_nothing(self):
        for where in (
            "localhost:8080",
            "tcp:",
            "tcp:http",
            "tcp:99999",
            "tcp:1:port=2",
            "unix:/no/such/x",
            "x:",
        ):
            message = str(self.assertRaises(StartError, self.bind, where))
            self.assertTrue(message.startswith(f"cannot listen on {where!r}: "), message)
            self.assertTrue(message.endswith("; choose another place with --text"), message)
            self.assertNotIn("\n", message)


class ImportTests(SynchronousTestCase):
    def test_no_module_picks_the_reactor(self):
        program = (
            "import sys, kvcore, kvnet.service, kvnet.tap, kvnet.process, kvnet.cli;"
            "sys.exit('twisted.internet.reactor' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], env=environment(), capture_output=True, timeout=60
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))

    def test_a_service_made_outside_twistd_leaves_the_process_alone(self):
        before = sys.excepthook, sys.__stderr__, signal.getsignal(signal.SIGTERM)
        options = tap.Options()
        options.parseOptions([])
        tap.makeService(options)
        self.assertEqual((sys.excepthook, sys.__stderr__, signal.getsignal(signal.SIGTERM)), before)
