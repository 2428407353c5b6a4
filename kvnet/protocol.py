"""The text protocol as an ordinary Twisted Protocol over a Session: any endpoint, TLS, tests."""

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from kvnet.session import Session, command_rows


@implementer(IHalfCloseableProtocol, IPushProducer)
class TextProtocol(Protocol):
    """One connection. While the client does not read its replies, its commands are not read either."""

    def connectionMade(self):
        factory = self.factory
        self.session = factory.new_session()
        self._choked = False  # the transport's buffer is full
        self._stalled = False  # enough replies wait for a sync
        self._closing = False  # close when everything is answered
        self._timeout = None
        self._next_pump = None
        factory.opened(self)
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self._touch()

    def connectionLost(self, reason):
        for call in (self._timeout, self._next_pump):
            if call is not None:
                call.cancel()
        self._timeout = self._next_pump = None
        self.factory.closed(self)

    def dataReceived(self, data):
        self._touch()
        self.session.hold = self.factory.commit.holding
        self.session.feed(data)
        self._pump()

    def readConnectionLost(self):
        """The client has sent all (half-close): answer it, then close."""
        self.session.hold = self.factory.commit.holding
        self.session.finish()
        self._closing = True
        self._pump()

    def writeConnectionLost(self):
        """The client reads no more: nothing it could still ask would be heard."""
        self.transport.loseConnection()

    def drain(self):
        """Answer what was received, then close."""
        self._closing = True
        self._pump()

    def released(self, mark):
        """What the session answered up to `mark` is on the disk. Called by Commit."""
        self.session.release(mark)
        self._pump()

    def failed(self, reason):
        """The sync that held replies waited for failed. Called by Commit."""
        self.session.fail(reason)
        self._pump()

    # IPushProducer: the transport says when its buffer fills and empties.

    def pauseProducing(self):
        self._choked = True
        self._read_or_not()

    def resumeProducing(self):
        self._choked = False
        self._read_or_not()
        self._pump()

    def stopProducing(self):
        self._choked = True

    def _read_or_not(self):
        if self._choked or self._stalled:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def _pump(self):
        session = self.session
        self._write()
        if session.unfinished and not (self._choked or session.held):
            session.hold = self.factory.commit.holding
            session.resume()
            self._write()
            if session.unfinished and not (self._choked or session.held) and self._next_pump is None:
                # A long list is made a part at a time, and in between it is the others' turn.
                self._next_pump = self.factory.reactor.callLater(0, self._pump_on)
        stalled = session.held and session.unfinished
        if stalled != self._stalled:
            # Enough waits for the sync: what the client sends on may wait in the kernel.
            self._stalled = stalled
            self._read_or_not()
        if session.held:
            self.factory.commit.wait(self)
        elif self._closing and not session.unfinished:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def _pump_on(self):
        self._next_pump = None
        self._pump()

    def _write(self):
        replies = self.session.take()
        if replies:
            self.transport.write(replies)

    def _touch(self):
        if not self.factory.idle_timeout:
            return
        if self._timeout is None:
            self._timeout = self.factory.reactor.callLater(self.factory.idle_timeout, self._timed_out)
        else:
            self._timeout.reset(self.factory.idle_timeout)

    def _timed_out(self):
        self._timeout = None
        if self._closing:
            self.transport.abortConnection()  # it had its time to take what was left
            return
        self.drain()
        self._touch()


class TextFactory(Factory):
    """Connections of the text protocol. Options as on the command line; `connections` is the set of open ones."""

    noisy = False
    protocol = TextProtocol

    def __init__(self, store, commit, metrics, reactor, *, dialect="challenge", max_value_size=64 << 20,
                 max_connections=10_000, idle_timeout=0):
        self.store = store
        self.commit = commit
        self.metrics = metrics
        self.reactor = reactor
        self.dialect = dialect
        self.max_value_size = max_value_size
        self.max_connections = max_connections
        self.idle_timeout = idle_timeout
        self.connections = set()
        self._row = command_rows(metrics)
        self._drained = None

    def new_session(self):
        return Session(self.store, self.metrics, self._row, self.dialect, self.max_value_size)

    def buildProtocol(self, addr):
        if len(self.connections) >= self.max_connections:
            self.metrics.connections_refused += 1
            return None
        return super().buildProtocol(addr)

    def opened(self, protocol):
        self.connections.add(protocol)
        self.metrics.connections_opened += 1
        self.metrics.connections = len(self.connections)

    def closed(self, protocol):
        self.connections.discard(protocol)
        self.metrics.connections = len(self.connections)
        if self._drained is not None and not self.connections:
            self._drained.callback(None)
            self._drained = None

    def drain(self):
        """Let every connection be answered and close. Returns a Deferred that fires when all are closed."""
        if not self.connections:
            return succeed(None)
        self._drained = Deferred()
        drained = self._drained
        for protocol in list(self.connections):
            protocol.drain()
        return drained

    def abort(self):
        """Cut the connections that are still open."""
        for protocol in list(self.connections):
            protocol.transport.abortConnection()
