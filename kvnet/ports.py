"""Ports whose connections are direct, and which take so many clients a turn, and none while descriptors are short."""

import errno
import os

from twisted.internet import tcp, unix
from twisted.logger import Logger

from kvnet.process import descriptors_for_clients
from kvnet.transport import DirectServer, DirectUNIXServer, Hub

ACCEPTS = 32  # clients taken a turn: about a millisecond
PAUSE = 0.5  # seconds until another look when descriptors are short
# What accept() answers about the client and not about us.
CLIENT_GONE = (errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.EINTR)
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = Logger()


class Ports:
    """The reactor as endpoints see it; the TCP and UNIX ports it makes are those of this module. metrics: Metrics."""

    def __init__(self, reactor, metrics):
        self.reactor = reactor
        self._metrics = metrics
        self.hub = Hub(reactor)

    def __getattr__(self, name):
        return getattr(self.reactor, name)

    def listenTCP(self, port, factory, backlog=50, interface=""):
        """As in IReactorTCP."""
        return self._open(TCPPort(port, factory, backlog, interface, self.reactor))

    def listenUNIX(self, address, factory, backlog=50, mode=0o666, wantPID=0):
        """As in IReactorUNIX."""
        return self._open(UNIXPort(address, factory, backlog, mode, self.reactor, wantPID))

    def _open(self, port):
        port.short = self.short
        port.hub = self.hub
        port.startListening()
        return port

    def short(self, why: str) -> None:
        """A port pauses."""
        self._metrics.accept_pauses += 1
        log.warn("no clients are accepted for now: {why}; those who come wait", why=why)


class _Bounded:
    """A port of Twisted with another doRead."""

    _paused = None

    def doRead(self):
        """Accept a turn's worth of clients."""
        for _ in range(ACCEPTS):
            why = descriptors_short(self)
            if why:
                self._pause(why)
                return
            try:
                connection, address = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in CLIENT_GONE:
                    continue
                if error.errno not in SHORT:
                    raise
                self._pause(error.strerror)
                return
            protocol = self.factory.buildProtocol(self._buildAddr(address))
            if protocol is None:
                connection.close()
                continue
            self.sessionno += 1
            protocol.makeConnection(self.transport(connection, protocol, address, self, self.sessionno, self.reactor))

    def connectionLost(self, reason):
        """The port is closed."""
        if self._paused is not None:
            self._paused.cancel()
        super().connectionLost(reason)

    def _pause(self, why):
        self.short(why)
        self.stopReading()
        self._paused = self.reactor.callLater(PAUSE, self._resume)

    def _resume(self):
        self._paused = None
        if not self.disconnecting:
            self.startReading()


class TCPPort(_Bounded, tcp.Port):
    transport = DirectServer


class UNIXPort(_Bounded, unix.Port):
    transport = DirectUNIXServer


def descriptors_short(port) -> str | None:
    """Why no client may have the next descriptor, or None. The lowest free one is always given out first."""
    try:
        free = os.dup(port.fileno())
    except OSError as error:
        return error.strerror
    os.close(free)
    limit = descriptors_for_clients()
    if free < limit:
        return None
    return f"{limit} files are open, and what the process may have beyond that (ulimit -n) is for the data"
