"""The real daemon, killed with -9 in the middle of load: what it acknowledged is there, and nothing else.

The oracle: each connection owns its keys and knows, for each of them, the last acknowledged state and those that were sent
after it. After the restart a key must be in one of these states.
"""

import contextlib
import os
import random
import select
import signal
import socket
import threading

from twisted.trial.unittest import SynchronousTestCase

from tests.daemon import Daemon
from tests.support import SANITIZED

ROUNDS = 10
CONNECTIONS = 4
WINDOW = 64  # commands in flight on a connection
DELETED = b"error"


class Client(threading.Thread):
    """One connection that writes and deletes its own keys, pipelined, until the server is gone."""

    def __init__(self, number, port, states, seed):
        super().__init__(daemon=True)
        self.states = states  # key -> list of states that it may have: the acknowledged one, then those in flight
        self.acknowledged = 0
        self.progress = threading.Event()
        self.wrong = []
        self._number = number
        self._rng = random.Random(seed)
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._sent = []

    def run(self):
        pending = b""
        with self._socket, contextlib.suppress(ConnectionError):
            while True:
                if len(self._sent) < WINDOW:
                    self._socket.sendall(b"".join(self._command() for _ in range(WINDOW // 2)))
                readable, _, _ = select.select([self._socket], [], [], 30)
                chunk = self._socket.recv(1 << 16) if readable else b""
                if not chunk:
                    return
                *replies, pending = (pending + chunk).split(b"\r")
                for reply in replies:
                    self._answered(reply)

    def _command(self):
        key = b"c%d-%d" % (self._number, self._rng.randrange(300))
        states = self.states.setdefault(key, [DELETED])
        if self._rng.random() < 0.25:
            self._sent.append((key, DELETED, states[-1] != DELETED))
            states.append(DELETED)
            return b"delete " + key + b"\r"
        value = b"%d." % self._rng.randrange(1 << 60) + b"v" * self._rng.choice((0, 10, 100, 1000, 5000))
        self._sent.append((key, value, True))
        states.append(value)
        return b"write " + key + b"|" + value + b"\r"

    def _answered(self, reply):
        key, state, changes = self._sent.pop(0)
        if reply != (b"success" if changes else b"error"):
            self.wrong.append((key, state[:20], reply))
        states = self.states[key]
        del states[:states.index(state, 1)]
        self.acknowledged += 1
        self.progress.set()


def read_all(port, keys):
    """What `read` answers for each key, over one pipelined connection."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        sender = threading.Thread(target=connection.sendall, args=(b"".join(b"read " + key + b"\r" for key in keys),))
        sender.start()
        said = bytearray()
        while said.count(b"\r") < len(keys):
            chunk = connection.recv(1 << 20)
            if not chunk:
                raise AssertionError("the server closed the connection")
            said += chunk
        sender.join()
    return dict(zip(keys, bytes(said).split(b"\r"), strict=False))


def newest_segment(directory):
    """The highest number of a segment that holds records. Older ones may be gone, compacted."""
    with os.scandir(directory) as entries:
        return max(int(entry.name[:10]) for entry in entries if entry.name.endswith(".seg") and entry.stat().st_size > 64)


class KillTest(SynchronousTestCase):
    def rounds(self, word):
        directory = self.mktemp()
        os.mkdir(directory)
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        states = [{} for _ in range(CONNECTIONS)]
        newest = 0
        for round_number in range(ROUNDS):
            where = f"round {round_number}, seed {seed}"
            daemon = Daemon(directory, f"--fsync={word}", "--segment-size=1MiB")
            self.addCleanup(daemon.kill)
            self.check(daemon.port, states, where)
            clients = [Client(i, daemon.port, states[i], rng.random()) for i in range(CONNECTIONS)]
            for client in clients:
                client.start()
            # Enough for more than one segment of 1 MiB: a command carries about 900 bytes.
            goal = rng.randrange(1600, 2600)
            while sum(client.acknowledged for client in clients) < goal and any(c.is_alive() for c in clients):
                clients[0].progress.wait(1)
                clients[0].progress.clear()
            daemon.process.send_signal(signal.SIGKILL)
            daemon.wait()
            for client in clients:
                client.join()
                self.assertEqual(client.wrong, [], where)
            self.assertGreaterEqual(sum(client.acknowledged for client in clients), goal, where)
            before, newest = newest, newest_segment(f"{directory}/data")
            self.assertGreater(newest, before, f"no rotation in {where}")
        daemon = Daemon(directory, f"--fsync={word}", "--segment-size=1MiB")
        self.addCleanup(daemon.kill)
        self.check(daemon.port, states, f"the end, seed {seed}")
        self.assertEqual(daemon.stop()[0], 0)

    def check(self, port, states, where):
        """Every key is in a state that its client knows; from then on it is that one."""
        for known in states:
            if not known:
                continue
            for key, value in read_all(port, list(known)).items():
                self.assertIn(value, known[key], f"{key} after {where}")
                known[key] = [value]

    def test_always(self):
        self.rounds("always")

    def test_everysec(self):
        self.rounds("everysec")

    def test_no(self):
        self.rounds("no")


class MemoryTest(SynchronousTestCase):
    """What the issue of memory is about: a key costs the server its index entry, not its length."""

    COUNT = 1_000_000

    if SANITIZED:
        skip = "a sanitizer's shadow memory is not the server's"

    def load(self, number, port, failures):
        count = self.COUNT // CONNECTIONS
        value = b"v" * 100
        with socket.create_connection(("127.0.0.1", port)) as connection:
            def send():
                for start in range(0, count, 1000):
                    connection.sendall(b"".join(
                        b"write key:%012d|%s\r" % (number * count + i, value) for i in range(start, start + 1000)))
            sender = threading.Thread(target=send)
            sender.start()
            received = 0
            while received < count * 8:
                chunk = connection.recv(1 << 20)
                if not chunk:
                    break
                received += len(chunk)
            sender.join()
            if received != count * len(b"success\r"):
                failures.append(received)

    def test_private_memory_with_a_million_keys(self):
        directory = self.mktemp()
        os.mkdir(directory)
        daemon = Daemon(directory)
        self.addCleanup(daemon.kill)
        failures = []
        loaders = [threading.Thread(target=self.load, args=(i, daemon.port, failures)) for i in range(CONNECTIONS)]
        for loader in loaders:
            loader.start()
        for loader in loaders:
            loader.join()
        self.assertEqual(failures, [])
        with open(f"/proc/{daemon.process.pid}/status") as status:
            rss = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
        some = [b"key:%012d" % i for i in range(0, self.COUNT, 9973)]
        self.assertEqual(set(read_all(daemon.port, some).values()), {b"v" * 100})
        self.assertLess(rss, 90 * 1024, "KiB of RssAnon")
        self.assertEqual(daemon.stop()[0], 0)
