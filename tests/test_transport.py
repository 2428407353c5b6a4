"""The direct path beside the ordinary one: the same bytes through both, over real sockets; then what only sockets do."""

import contextlib
import datetime
import gc
import itertools
import os
import random
import socket
import ssl
import weakref

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import formatEvent, globalLogPublisher
from twisted.protocols import tls

from kvnet import ports
from kvnet.listen import Listener
from kvnet.ports import Ports
from kvnet.transport import Direct
from tests.loop import Client, Loop, Server
from tests.support import StoreCase
from tests.test_session import ANSWERS, STATUS, TALK

WORDS = [b"\r", b"\n", b" ", b"|"]
WORDS += [b"write a|", b"write bb|", b"read a", b"reads ", b"keys", b"delete a", b"status", b"k" * 300]
CHUNKS = st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(WORDS)), max_size=8).map(b"".join)


class TransportCase(StoreCase):
    def setUp(self):
        super().setUp()
        os.mkdir(self.dir)
        self.loop = Loop()
        self.addCleanup(self.loop.close)

    def serve(self, name="direct", **options):
        server = Server(self.loop, os.path.join(self.dir, name), **options)
        self.addCleanup(server.close)
        return server

    def wait_until_gone(self, server):
        self.loop.until(lambda: server.metrics.connections == 0)


class DifferenceTest(TransportCase):
    """Byte for byte the same replies, and the same store behind them."""

    def pair(self, **options):
        number = len(os.listdir(self.dir))
        self.servers = [self.serve(f"{number}{direct}", direct=direct, **options) for direct in (True, False)]
        return self.servers

    def both(self, talk):
        """What both answer, when talk(client) returns what a client heard."""
        direct, ordinary = (talk(server.connect()) for server in self.servers)
        self.assertTrue(direct == ordinary, (direct[:1000], ordinary[:1000]))
        first, second = (dict(server.store.items()) for server in self.servers)
        self.assertTrue(first == second)
        return direct

    def chunks(self, *chunks):
        def talk(client):
            for chunk in chunks:
                client.send(chunk)
            return client.end()

        return self.both(talk)

    def test_which_path_is_taken(self):
        direct, ordinary = self.pair()
        for client in [server.connect() for server in self.servers]:
            self.addCleanup(client.socket.close)
            client.send(b"status\r")
            client.expect(1)
        (one,), (other,) = direct.factory.connections, ordinary.factory.connections
        self.assertIsInstance(one.transport, Direct)
        self.assertNotIsInstance(other.transport, Direct)

    def test_every_command_and_every_error_in_chunks_of_every_size(self):
        for unix in (False, True):
            self.pair(unix=unix)
            for size in (1, 2, 3, 5, 7, 16, 100, len(TALK)):
                said = self.chunks(*[TALK[i:i + size] for i in range(0, len(TALK), size)])
                self.assertEqual(said, ANSWERS, (unix, size))

    def test_dialects(self):
        for dialect in ("escabelo", "lf"):
            self.pair(dialect=dialect)
            self.chunks(TALK)
            self.chunks(b"write a|1\rwrite b|2\rread x\rkeys\rstatus\r")

    def test_long_pipelines(self):
        self.pair()
        said = b"".join(b"write k%d|%d\rread k%d\rdelete k%d\r" % (i, i, i, i // 2) for i in range(20_000))
        self.assertEqual(self.chunks(said).count(b"\r"), 60_000)

    def test_values_and_keys_of_every_size_in_chunks_of_any_size(self):
        self.pair()
        rng = random.Random(1)
        for size in (1, 100, 10_000, 100_000, 1_000_000, 5_000_000):
            value = rng.randbytes(size).replace(b"\r", b"?")
            key = b"k" * min(size, 102_400)
            said = b"write %s|%s\rread %s\rstatus\rreads %s\rread nothing" % (key, value, key, key)
            cuts = sorted(rng.sample(range(len(said)), min(len(said), 20)))
            heard = self.chunks(*[said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)])
            self.assertTrue(heard == b"success\r" + value + b"\r" + STATUS + value + b"\rerror\r")

    def test_all_that_came_before_anybody_looked(self):
        """One event tells of all of it, whatever it is that a receive ends at: its room, the end of the stream ..."""
        room = 16384
        line = b"write a|" + b"v" * 503 + b"\r"
        for unix in (False, True):
            self.pair(unix=unix)
            for said in (b"status\rread a\r", line * 32, line * 32 + b"read a\r", line * 100, b"status\r" * room):
                for rest in (lambda client, said: client.expect(said.count(b"\r")), lambda client, _: client.end()):
                    def talk(client, said=said, rest=rest):
                        self.assertEqual(client.offer(said), len(said))
                        return rest(client, said)

                    self.assertEqual(self.both(talk).count(b"\r"), said.count(b"\r"))

    def test_urgent_data(self):
        """... the place where it was in the stream ..."""
        self.pair()

        def talk(client):
            client.offer(b"write a|1\rread ")
            client.socket.send(b"!", socket.MSG_OOB)
            client.offer(b"a\rstatus\r")
            return client.expect(3)

        self.assertEqual(self.both(talk), b"success\r1\r" + STATUS)

    def test_a_descriptor_that_was_sent(self):
        """... or that."""
        self.pair(unix=True)

        def talk(client):
            socket.send_fds(client.socket, [b"write a|1\rread "], [0])
            client.offer(b"a\rstatus\r")
            return client.expect(3)

        self.assertEqual(self.both(talk), b"success\r1\r" + STATUS)

    def test_over_long_commands(self):
        self.pair(max_value_size=1000)
        for start in (b"", b"write k|", b"read ", b"garbage"):
            said = start + b"x" * 500_000
            self.assertEqual(self.chunks(said, b"y" * 100_000, b"tail\rstatus\r", said), b"error\r" + STATUS + b"error\r")
        self.assertEqual([server.metrics.commands_too_long for server in self.servers], [8, 8])

    def test_slow_reader(self):
        """Replies far beyond what kernel and server buffer come when they are taken, and nothing overtakes."""
        self.pair()
        for server in self.servers:
            for i in range(100):
                server.store.put(b"big%d" % i, b"%d" % i * 50_000)
            server.store.flush()
        said = b"".join(b"read big%d\rwrite n%d|%d\rread n%d\r" % (i % 100, i, i, i) for i in range(400))
        said += b"keys\rreads big\r"

        def talk(client):
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
            view = memoryview(said)
            for _ in range(50):
                view = view[client.offer(view):]
                self.loop.turn()
            client.send(view)
            return client.end()

        heard = self.both(talk)
        self.assertGreater(len(heard), 40_000_000)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(CHUNKS, max_size=8))
    def test_any_bytes(self, chunks):
        if not hasattr(self, "servers"):
            self.pair()
        self.chunks(*chunks)

    def test_seeded_noise(self):
        self.pair()
        rng = random.Random(7)
        for _ in range(60):
            noise = [rng.choice(WORDS) if rng.random() < 0.9 else rng.randbytes(5) for _ in range(rng.randrange(300))]
            said = b"".join(noise)
            cuts = sorted(rng.randrange(len(said) + 1) for _ in range(rng.randrange(6)))
            self.chunks(*[said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)])

    def test_group_commit(self):
        self.pair(fsync="always")
        self.assertEqual(self.chunks(TALK), ANSWERS)
        said = b"".join(b"write k%d|%d\rread k%d\r" % (i, i, i) for i in range(10_000))
        self.chunks(*[said[i:i + 10_000] for i in range(0, len(said), 10_000)])


class SocketTest(TransportCase):
    """Ends, limits and buffers of the direct path."""

    def test_no_reply_to_a_write_before_its_sync(self):
        server = self.serve(fsync="always")
        client = server.connect()
        client.send(b"status\rwrite a|1\rstatus\r")
        self.assertEqual(client.expect(1), STATUS)
        for _ in range(5):
            self.loop.turn()
        self.assertFalse(client.readable())
        self.assertEqual(len(self.loop.work), 1)
        self.assertEqual(client.expect(2), b"success\r" + STATUS)
        self.assertEqual(server.store.unsynced, 0)

    def test_a_client_that_is_gone_before_its_sync(self):
        """Its replies go nowhere: least of all to the client that has got its descriptor."""
        server = self.serve(fsync="always")
        gone = server.connect()
        gone.send(b"write a|1\r")
        self.loop.until(lambda: self.loop.work)
        gone.reset()
        while server.metrics.connections:
            self.loop.turn()
        other = server.connect()
        other.send(b"status\r")
        self.assertEqual(other.expect(1), STATUS)
        self.loop.run_threads()
        self.loop.turn()
        self.assertFalse(other.readable())
        self.assertEqual(server.store.get(b"a"), b"1")

    def test_reset_in_the_middle_of_a_command(self):
        server = self.serve()
        client = server.connect()
        client.send(b"write a|1\rwrite b|unfinished")
        client.expect(1)
        client.reset()
        self.wait_until_gone(server)
        self.assertEqual(dict(server.store.items()), {b"a": b"1"})

    def test_reset_with_replies_that_wait(self):
        server = self.serve()
        server.store.put(b"big", b"v" * 1_000_000)
        for unix in (False, True):
            client = server.connect() if not unix else self.serve("unix", unix=True).connect()
            client.send(b"write a|1\r")
            client.expect(1)
            client.offer(b"read big\r" * 100)
            for _ in range(20):
                self.loop.turn()
            client.reset()
            self.wait_until_gone(server)

    def test_client_that_shuts_its_receiving_side(self):
        server = self.serve(unix=True)
        client = server.connect()
        client.send(b"status\r")
        client.expect(1)
        client.socket.shutdown(socket.SHUT_RD)
        client.offer(b"write a|1\rstatus\r")
        self.wait_until_gone(server)
        self.assertEqual(server.store.get(b"a"), b"1")

    def test_half_close_with_replies_that_wait(self):
        server = self.serve()
        server.store.put(b"big", b"v" * 1_000_000)
        client = server.connect()
        client.offer(b"read big\r" * 30 + b"write z|last")
        client.socket.shutdown(socket.SHUT_WR)
        for _ in range(20):
            self.loop.turn()
        self.assertIsNone(server.store.get(b"z"))
        self.assertTrue(client.rest() == (b"v" * 1_000_000 + b"\r") * 30 + b"success\r")
        self.wait_until_gone(server)

    def test_client_that_does_not_read_is_not_read_and_holds_little(self):
        server = self.serve()
        server.store.put(b"big", b"v" * 100_000)
        client = server.connect()
        said = b"read big\r" * 1000
        while client.offer(said):
            for _ in range(5):
                self.loop.turn()
        (protocol,) = server.factory.connections
        self.assertEqual(server.metrics.reading_paused, 1)
        # A MiB and a reply at most; what was sent before is on its way in the kernel.
        self.assertLess(protocol.transport._tempDataLen + len(protocol.transport.dataBuffer), 1_200_000)
        self.assertLess(server.metrics.count("text", "read", "ok"), 1000)

    def test_nothing_overtakes_what_is_in_the_buffer(self):
        """There is room in the socket again, but the reactor has not used it yet."""
        server = self.serve()
        server.store.put(b"big", b"v" * 50_000)
        client = server.connect()
        client.send(b"status\r")
        client.expect(1)
        (transport,) = (protocol.transport for protocol in server.factory.connections)
        asked = 0
        while not transport._tempDataLen:
            client.offer(b"read big\r")
            asked += 1
            transport.server.hub.doRead()
        client.receive()
        client.offer(b"status\r")
        transport.server.hub.doRead()
        self.assertTrue(client.end() == (b"v" * 50_000 + b"\r") * asked + STATUS)

    def test_drain_lets_a_slow_client_take_its_replies(self):
        server = self.serve()
        server.store.put(b"big", b"v" * 6_000_000)
        client = server.connect()
        client.offer(b"read big\rread big\r")
        for _ in range(10):
            self.loop.turn()
        drained = server.factory.drain()
        self.assertEqual(len(client.rest()), 12_000_002)
        self.loop.until(lambda: drained.called)

    def test_abort_with_replies_that_wait(self):
        server = self.serve()
        server.store.put(b"big", b"v" * 30_000_000)
        client = server.connect()
        client.offer(b"read big\r")
        for _ in range(10):
            self.loop.turn()
        server.factory.abort()
        self.wait_until_gone(server)
        self.assertRaises(ConnectionResetError, client.rest)

    def test_idle_clients(self):
        server = self.serve(idle_timeout=60)
        idle, busy = server.connect(), server.connect()
        busy.send(b"status\r")
        busy.expect(1)
        self.loop.until(lambda: server.metrics.connections == 2)
        self.loop.later += 40
        busy.send(b"status\r")
        busy.expect(1)
        self.loop.later += 40
        self.assertEqual(idle.rest(), b"")
        busy.send(b"status\r")
        self.assertEqual(busy.expect(1), STATUS)
        self.assertEqual((server.metrics.connections, server.metrics.connections_idle), (1, 1))

    def test_a_connection_that_breaks_leaves_the_others_alone(self):
        server = self.serve(fsync="always")
        whole, broken = server.connect(), server.connect()
        for client in (whole, broken):
            client.send(b"status\r")
            client.expect(1)
        name = broken.socket.getsockname()
        (other,) = (protocol for protocol in server.factory.connections if protocol.transport.client == name)
        other.transport.write = lambda replies: 1 / 0
        other.transport._pipe.buffer(True)  # so that replies go there
        broken.send(b"write a|1\r")
        whole.send(b"write b|2\r")
        self.assertEqual(whole.expect(1), b"success\r")
        self.assertRaises(ConnectionResetError, broken.rest)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_what_a_connection_held_is_freed_with_it(self):
        """At once, and not when the garbage collector comes."""
        server = self.serve()
        gc.disable()
        self.addCleanup(gc.enable)
        client = server.connect()
        client.send(b"write a|1\r")
        client.expect(1)
        (protocol,) = server.factory.connections
        held = [weakref.ref(thing) for thing in (protocol, protocol.transport)]
        del protocol
        client.end()
        self.wait_until_gone(server)
        self.loop.turn()
        self.assertEqual([thing() for thing in held], [None, None])

    def test_one_pipeline_does_not_hold_up_the_others(self):
        server = self.serve()
        greedy, modest = server.connect(), server.connect()
        said = memoryview(b"write k|%s\r" % (b"v" * 100) * 100_000)
        modest.send(b"status\r")
        modest.expect(1)
        for _ in range(20):
            said = said[greedy.offer(said):]
            self.loop.turn()
            before = server.metrics.count("text", "write", "ok")
            modest.offer(b"status\r")
            while not modest.readable():
                self.loop.turn()
            # What was executed in between is a few turns, not all that was sent.
            self.assertLess(server.metrics.count("text", "write", "ok") - before, 10_000)
            modest.receive()
        greedy.send(said)
        self.assertEqual(greedy.end(), b"success\r" * 100_000)


class PortTest(TransportCase):
    def crowd(self, server, count, said=b"status\r"):
        clients = [server.connect() for _ in range(count)]
        for client in clients:
            self.addCleanup(client.socket.close)
            client.offer(said)
        return clients

    def test_a_flood_of_clients_is_taken_a_part_at_a_time(self):
        server = self.serve()
        clients = self.crowd(server, 100)
        taken = [0]
        while taken[-1] < 100:
            self.loop.turn()
            taken.append(server.metrics.connections_opened)
        self.assertLessEqual(max(b - a for a, b in itertools.pairwise(taken)), ports.ACCEPTS)
        for client in clients:
            self.assertEqual(client.expect(1), STATUS)

    def test_maximum_of_connections(self):
        server = self.serve(max_connections=2)
        first, _, *others = self.crowd(server, 5, b"")
        self.assertEqual([client.rest() for client in others], [b""] * 3)
        self.assertEqual((server.metrics.connections, server.metrics.connections_refused), (2, 3))
        first.send(b"status\r")
        self.assertEqual(first.end(), STATUS)
        self.loop.until(lambda: server.metrics.connections == 1)
        (late,) = self.crowd(server, 1)
        self.assertEqual(late.expect(1), STATUS)

    def test_short_of_descriptors(self):
        """Who is connected is served, who comes waits, and the same line tells each time."""
        events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        server = self.serve()
        first, *others = self.crowd(server, 5)
        free = os.dup(0)
        os.close(free)
        self.patch(ports, "descriptors_for_clients", lambda: free + 1)
        self.assertEqual(first.expect(1), STATUS)
        for pauses in (1, 2, 3):
            self.loop.until(lambda: server.metrics.accept_pauses == pauses)  # noqa: B023
            self.loop.later += ports.PAUSE
        self.assertEqual(server.metrics.connections, 1)
        first.send(b"status\r")
        self.assertEqual(first.expect(1), STATUS)
        lines = [formatEvent(event) for event in events if "accepted" in event["log_format"]]
        self.assertGreaterEqual(len(lines), 3)
        self.assertEqual(len(set(lines)), 1)
        self.assertRegex(lines[0], r": \d+ files are open, .*; those who come wait$")
        self.patch(ports, "descriptors_for_clients", lambda: 1 << 20)
        for client in others:
            self.assertEqual(client.expect(1), STATUS)

    def test_a_port_that_is_closed_while_it_pauses(self):
        server = self.serve()
        self.patch(ports, "descriptors_for_clients", lambda: 0)
        self.crowd(server, 1)
        self.loop.until(lambda: server.metrics.accept_pauses)
        server.port.stopListening()
        self.loop.until(lambda: not server.port.connected)
        self.assertEqual([call for call in self.loop.getDelayedCalls() if call.active()], [])


class ListenerTest(TransportCase):
    """Which ports lead to the direct path."""

    def bind(self, where):
        self.server = self.serve(str(where).partition(":")[0])
        listener = Listener(Ports(self.loop, self.server.metrics), "text", where, self.server.factory)
        listener.privilegedStartService()
        self.addCleanup(listener.release)
        return listener

    def test_ports_of_the_loopback_and_plain_endpoints_are_direct(self):
        path = self.mktemp()[-80:].replace("/", "-")
        for where in (0, "tcp:0:interface=127.0.0.1", f"unix:{path}"):
            for address in self.bind(where).addresses:
                client = self.connect(address)
                client.send(b"status\r")
                self.assertEqual(client.expect(1), STATUS)
                (protocol,) = self.server.factory.connections
                self.assertIsInstance(protocol.transport, Direct)
                client.end()
                self.wait_until_gone(self.server)

    def connect(self, address):
        if address.startswith("unix:"):
            return Client(self.loop, address.removeprefix("unix:"))
        host, _, number = address.rpartition(":")
        return Client(self.loop, (host.strip("[]"), int(number)))

    def test_what_wraps_a_plain_endpoint_is_not_passed_by(self):
        (address,) = self.bind("haproxy:tcp:0:interface=127.0.0.1").addresses
        client = self.connect(address)
        client.send(b"PROXY TCP4 192.0.2.1 127.0.0.1 1234 80\r\nwrite a|1\rread a\r")
        self.assertEqual(client.expect(2), b"success\r1\r")
        client.socket.close()

    def test_tls_goes_the_ordinary_way(self):
        self.patch(tls, "_get_default_clock", lambda: self.loop)
        path = self.certificate()
        (address,) = self.bind(f"ssl:0:interface=127.0.0.1:privateKey={path}:certKey={path}").addresses
        context = ssl.create_default_context(cafile=path)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        client = self.connect(address)

        def carry(step, *arguments):
            """What the step returns, once enough has gone to and fro."""
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    result = step(*arguments)
                    client.send(outgoing.read())
                    return result
                client.send(outgoing.read())
                self.loop.until(lambda: client.receive() or client.received)
                incoming.write(client.received)
                client.received.clear()

        carry(secure.do_handshake)
        carry(secure.write, b"write a|1\rread a\r")
        heard = b""
        while heard.count(b"\r") < 2:
            heard += carry(secure.read, 100)
        self.assertEqual(heard, b"success\r1\r")
        (protocol,) = self.server.factory.connections
        self.assertNotIsInstance(protocol.transport, Direct)
        client.socket.close()

    def certificate(self):
        """The path of a key and its certificate for "localhost"."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        localhost = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        made = x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(),
            now - datetime.timedelta(days=1), now + datetime.timedelta(days=1),
            [x509.Extension(localhost.oid, False, localhost)],
        ).sign(key, hashes.SHA256())
        path = os.path.join(self.dir, "pem")
        with open(path, "wb") as file:
            file.write(key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
            file.write(made.public_bytes(serialization.Encoding.PEM))
        return path
