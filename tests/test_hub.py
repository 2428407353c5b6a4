"""What the reactor watches in the place of direct connections: whose turn it is, and what comes between."""

import resource
import socket
import threading
from types import SimpleNamespace

from kvnet.transport import Hub
from tests.test_transport import TransportCase


class Reader:
    """One end of a pair of sockets that is ready; `served` says how often, `step` is what it does then."""

    def __init__(self, hub, step):
        self.socket, self.other = socket.socketpair()
        self.other.send(b"1")
        self.served, self.step = 0, step
        hub.addReader(self)

    def fileno(self):
        return self.socket.fileno()

    def logPrefix(self):
        return "reader"

    def doRead(self):
        self.served += 1
        self.step()

    def receive(self):
        self.socket.recv(1)


class HubTest(TransportCase):
    def setUp(self):
        super().setUp()
        self.hub = Hub(self.loop, 60)
        self.steps = []

    def reader(self, step):
        """One that is ready until it has received."""
        reader = Reader(self.hub, lambda: step(reader))
        self.addCleanup(reader.other.close)
        self.addCleanup(reader.socket.close)
        return reader

    def note(self, text):
        return lambda: self.steps.append(text)

    def test_calls_come_when_nobody_is_ready_any_more(self):
        def step(reader):
            reader.receive()
            self.steps.append("read")
            if len(self.steps) == 1:
                self.hub.soon(self.note("call"))

        for _ in range(40):
            self.reader(step)
        self.hub.doRead()
        self.assertEqual(self.steps, ["read"] * 40 + ["call"])

    def test_what_a_call_makes_ready_is_served_in_the_same_turn(self):
        def step(reader):
            reader.receive()
            if reader.served < 5:
                self.hub.soon(lambda: reader.other.send(b"1"))

        reader = self.reader(step)
        self.hub.doRead()
        self.assertEqual(reader.served, 5)

    def test_it_waits_a_moment_for_what_a_client_answers(self):
        self.hub = Hub(self.loop, 60, 60)
        served = threading.Event()

        def step(reader):
            reader.receive()
            served.set()
            if reader.served == 2:
                self.hub.removeReader(reader)

        def answer():
            served.wait()
            reader.other.send(b"2")

        reader = self.reader(step)
        thread = threading.Thread(target=answer)
        thread.start()
        self.hub.doRead()
        thread.join()
        self.assertEqual(reader.served, 2)

    def test_it_does_not_wait_while_the_reactor_has_something_to_write(self):
        """It would wait for longer than anybody can."""
        server = self.serve()
        server.store.put(b"big", b"v" * 30_000_000)
        idle = self.reader(None)
        idle.receive()
        server.port.hub = hub = Hub(self.loop, 1e6, 1e6)
        hub.addReader(idle)
        client = server.connect()
        client.offer(b"read big\r")
        self.assertEqual(len(client.expect(1)), 30_000_001)
        hub.removeReader(idle)
        server.factory.abort()
        self.wait_until_gone(server)

    def test_it_goes_on_while_nobody_waits_for_the_reactor(self):
        self.hub = Hub(self.loop, 0)
        reader = self.reader(lambda reader: reader.served == 100 and reader.receive())
        self.hub.doRead()
        self.assertEqual(reader.served, 100)

    def test_the_reactor_has_its_turn_though_somebody_is_always_ready(self):
        """When something is due, a worker has a result, or another descriptor is ready."""
        self.hub = Hub(self.loop, 0)
        busy = self.reader(lambda reader: self.steps and reader.receive())
        waiting = Reader(self.loop, lambda: waiting.socket.recv(1) and self.steps.append("descriptor"))
        self.addCleanup(waiting.other.close)
        self.addCleanup(waiting.socket.close)
        self.addCleanup(self.loop.removeReader, waiting)
        waits = {
            "timer": lambda: self.loop.callLater(0, self.note("timer")),
            "worker": lambda: self.loop.callFromThread(self.note("worker")),
            "descriptor": lambda: waiting.other.send(b"1"),
        }
        waiting.socket.recv(1)
        for name, wait in waits.items():
            wait()
            self.hub.doRead()
            self.assertEqual(self.steps, [])
            self.loop.until(lambda: self.steps)
            self.assertEqual(self.steps, [name])
            self.steps.clear()
            busy.other.send(b"1")

    def test_each_turn_ends_with_a_reactor_that_cannot_be_asked(self):
        """One without an epoll descriptor, and one whose descriptor is bad."""
        for poller in (None, SimpleNamespace(fileno=lambda: 1_000_000)):
            reactor = SimpleNamespace(_poller=poller, timeout=lambda: None, addReader=lambda hub: None)
            self.hub = Hub(reactor, 0)
            reader = self.reader(lambda reader: reader.served == 9 and reader.receive())
            self.hub.doRead()
            self.assertEqual(reader.served, 0)

    def test_calls_come_though_somebody_is_always_ready(self):
        """Not at once: what is ready may belong to what they are about."""
        self.hub = Hub(self.loop, 0)

        def step(reader):
            if reader.served == 1:
                self.hub.soon(lambda: self.steps.append(reader.served) or reader.receive())

        self.reader(step)
        self.hub.doRead()
        self.assertEqual(self.steps, [3])

    def test_who_is_ready_comes_before_the_calls_that_were_left_over(self):
        """Or there would be two in a row, the last of a turn and the first of the next."""
        self.hub.soon(self.note("call"))
        self.reader(lambda reader: reader.receive() or self.steps.append("read"))
        self.loop.turn()
        self.assertEqual(self.steps, ["read", "call"])

    def test_calls_come_though_there_is_nobody(self):
        self.hub.soon(lambda: self.hub.soon(self.note("call")))
        self.loop.turn()
        self.assertEqual(self.steps, ["call"])

    def test_one_that_fails_is_logged_and_the_others_come(self):
        self.hub.soon(lambda: 1 / 0)
        self.hub.soon(self.note("call"))
        failing = self.reader(lambda reader: reader.receive() or 1 / 0)
        other = self.reader(lambda reader: reader.receive())
        self.loop.turn()
        self.assertEqual((self.steps, failing.served, other.served), (["call"], 1, 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_it_needs_no_descriptor_later(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        reader = Reader(Hub(self.loop), lambda: reader.socket.recv(1))
        self.addCleanup(reader.other.close)
        self.addCleanup(reader.socket.close)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        self.hub.addReader(reader)
        self.hub.doRead()
        self.assertEqual(reader.served, 1)

    def test_one_that_another_removed_is_not_served(self):
        def step(reader):
            reader.receive()
            for other in readers:
                if other is not reader:
                    self.hub.removeReader(other)

        readers = [self.reader(step) for _ in range(3)]
        self.hub.doRead()
        self.assertEqual(sorted(reader.served for reader in readers), [0, 0, 1])
        for reader in readers:
            self.hub.addReader(reader)
        self.hub.doRead()
        self.assertEqual(sum(reader.served for reader in readers), 2)

    def test_connection_that_is_cut_after_its_command_was_received(self):
        server = self.serve()
        client, other = server.connect(), server.connect()
        for one in (client, other):
            one.send(b"status\r")
            one.expect(1)
        protocols = {protocol.transport.getPeer().port: protocol for protocol in server.factory.connections}
        victim = protocols[client.socket.getsockname()[1]]
        client.offer(b"write a|1\r")
        self.hub = victim.transport.server.hub
        reader = self.reader(lambda reader: reader.receive() or victim.transport.abortConnection())
        other.offer(b"write b|1\r")
        self.loop.turn()
        self.assertEqual((reader.served, server.store.get(b"a"), server.store.get(b"b")), (1, None, b"1"))
        self.assertRaises(ConnectionResetError, client.rest)
        self.hub.removeReader(reader)
