"""A real reactor, real sockets and a server in one thread, which move only when the test says so."""

import contextlib
import os
import select
import socket
import struct
import tempfile
import time

from twisted.internet.epollreactor import EPollReactor

import kvcore
from kvnet.commit import Commit
from kvnet.metrics import Metrics
from kvnet.ports import Ports
from kvnet.protocol import TextFactory
from tests.support import HandSyncer, at_once

# Seconds after which a test is said to hang.
PATIENCE = 60


class Loop(EPollReactor):
    """`later` seconds are added to the clock. What is for worker threads waits in `work`."""

    def __init__(self):
        super().__init__()
        self.later = 0
        self.work = []

    def seconds(self):
        return super().seconds() + self.later

    def getThreadPool(self):
        return self

    def callInThreadWithCallback(self, done, function, *args, **kwargs):
        self.work.append((done, function, args, kwargs))

    def run_threads(self):
        """Let the worker threads do what they have been given so far."""
        work, self.work = self.work, []
        for done, function, args, kwargs in work:
            done(True, function(*args, **kwargs))

    def turn(self, seconds=0):
        """One turn; when there is nothing to do wait so long for it."""
        self.runUntilCurrent()
        self.doIteration(seconds)

    def until(self, reached):
        """Turn, with the threads, until reached() is true; return what it said."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            result = reached()
            if result:
                return result
            self.run_threads()
            self.turn(0 if self.threadCallQueue or self.getDelayedCalls() else 0.01)
        raise AssertionError("it does not happen")

    def close(self):
        """Give the descriptors back."""
        for reader in self.removeAll():
            reader.connectionLost(None)
        for reader in self._internalReaders:
            reader.connectionLost(None)
        self._poller.close()


class Server:
    """A store, and a port of the text protocol that leads to it: a direct one or an ordinary one, TCP or UNIX.

    store: options of the store; the others are of the port.
    """

    def __init__(self, loop, directory, direct=True, unix=False, fsync="no", store=None, **options):
        self.loop = loop
        self.store = kvcore.open(directory, fsync=fsync, autoflush=False, executor=at_once, **(store or {}))
        self.metrics = Metrics()
        direct_ports = Ports(loop, self.metrics)
        soon = direct_ports.hub.soon
        self.commit = Commit(self.store, self.metrics, loop, HandSyncer(loop), soon)
        direct_ports.hub.gathers = self.commit.gathers
        self.factory = TextFactory(self.store, self.commit, self.metrics, loop, soon, **options)
        ports = direct_ports if direct else loop
        if unix:
            # The name of a socket is 107 bytes at most: not the test's own directory.
            self._place = tempfile.mkdtemp()
            self.address = os.path.join(self._place, "socket")
            self.port = ports.listenUNIX(self.address, self.factory)
        else:
            self._place = None
            self.port = ports.listenTCP(0, self.factory, 500, "127.0.0.1")
            self.address = "127.0.0.1", self.port.getHost().port

    def connect(self):
        """A new client."""
        return Client(self.loop, self.address)

    def close(self):
        """Cut everything off."""
        self.factory.abort()
        self.port.stopListening()
        self.loop.until(lambda: not self.factory.connections and not self.port.connected)
        if self._place is not None:
            os.rmdir(self._place)
        self.store.close()


class Client:
    """A socket; `received` is what came so far, `ended` whether the server has closed."""

    def __init__(self, loop, address):
        self.loop = loop
        unix = isinstance(address, str)
        self.socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.socket.connect(address)
        if not unix:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = bytearray()
        self.ended = False

    def offer(self, data):
        """Send as much of it as the kernel takes; how much that was."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    def receive(self):
        """Receive what is there."""
        with contextlib.suppress(BlockingIOError):
            while not self.ended:
                part = self.socket.recv(1 << 20)
                self.received += part
                self.ended = not part

    def send(self, data):
        """Send all of it, receiving what comes meanwhile."""
        view = memoryview(data)
        while view:
            sent = self.offer(view)
            view = view[sent:]
            self.loop.turn(0 if sent else 0.01)
            self.receive()

    def expect(self, replies):
        """Wait until so many replies have come; return and forget all that has come."""

        def reached():
            self.receive()
            return self.received.count(b"\r") >= replies or self.ended

        self.loop.until(reached)
        received, self.received = bytes(self.received), bytearray()
        return received

    def end(self):
        """Send no more; return all replies until the server closes."""
        self.socket.shutdown(socket.SHUT_WR)
        return self.rest()

    def rest(self):
        """All replies until the server closes."""
        self.loop.until(lambda: self.receive() or self.ended)
        self.socket.close()
        return bytes(self.received)

    def reset(self):
        """Be gone, without taking leave."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def readable(self):
        """Is there something to receive?"""
        return bool(select.select([self.socket], [], [], 0)[0])
