"""The text protocol as an ordinary Twisted Protocol over a Session: any endpoint, TLS, tests."""

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from zope.interface import implementer

from kvnet.group import Waiter
from kvnet.residency import Residency
from kvnet.session import Session, command_rows
from kvnet.transport import Direct
from kvnet.warmer import Warmer

log = Logger()


@implementer(IHalfCloseableProtocol, IPushProducer)
class TextProtocol(Protocol):
    """One connection. While the client does not read its replies, its commands are not read either."""

    def connectionMade(self):
        factory = self.factory
        self.session = factory.new_session()
        self._waiter = Waiter(self)
        self._choked = False  # the transport's buffer is full
        self._stalled = False  # commands wait that have to be executed first
        self._warming = False  # what they need is being read from the disk
        self._lost = False
        self._closing = False  # close when everything is answered
        self._heard_at = None  # when the client last sent something
        self._timeout = None
        self._scheduled = False  # _take_turn will be called
        factory.opened(self)
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        # Not by looking for attach(): the wrappers of TLS and others pass on what their transport has.
        self._reply = self.transport.attach(self) if isinstance(self.transport, Direct) else self._write
        if factory.idle_timeout:
            self.touch()
            self._timeout = factory.reactor.callLater(factory.idle_timeout, self._timed_out)

    def connectionLost(self, reason):
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
        self._lost = True
        self._waiter.close()
        self.factory.closed(self)

    def dataReceived(self, data):
        if self._timeout is not None:
            self.touch()
        self.session.hold = self.factory.commit.holding
        self.session.feed(data)
        self.proceed()

    def touch(self):
        """The client has said something."""
        self._heard_at = self.factory.reactor.seconds()

    def readConnectionLost(self):
        """The client has sent all (half-close): answer it, then close."""
        self.session.hold = self.factory.commit.holding
        self.session.finish()
        self._closing = True
        self.proceed()

    def writeConnectionLost(self):
        """The client reads no more: nothing it could still ask would be heard."""
        self.transport.loseConnection()

    def drain(self):
        """Answer what was received, then close."""
        self._closing = True
        self.proceed()

    def released(self, mark):
        """What the session answered up to `mark` is on the disk. Called by Commit."""
        self.session.release(mark)
        self.proceed()

    def failed(self, reason):
        """The sync that held replies waited for failed. Called by Commit."""
        self.session.fail(reason)
        self.proceed()

    def abort(self):
        """Cut the connection. Called by Commit."""
        self.transport.abortConnection()

    def warmed(self):
        """What the next command needs is in memory. Called by Warmer."""
        self._warming = False
        self.session.warm()
        if not self._lost:
            self.proceed()

    # IPushProducer: the transport says when its buffer fills and empties.

    def pauseProducing(self):
        if not self._choked:
            self.factory.metrics.reading_paused += 1
        self._choked = True
        self._read_or_not()

    def resumeProducing(self):
        self._choked = False
        self._read_or_not()
        self.proceed()

    def stopProducing(self):
        self._choked = True

    def _read_or_not(self):
        if self._choked or self._stalled:
            self.transport.pauseProducing()
        elif not self._closing:
            self.transport.resumeProducing()

    def proceed(self):
        """Something was executed: send what may go out, and see to what has to come next."""
        session = self.session
        self._reply()
        unfinished, held = session.unfinished, session.held
        if session.job is not None:
            if not self._warming:
                self._warming = True
                self.factory.warmer.bring(session.job, self.warmed)
        elif unfinished and not (self._choked or held) and not self._scheduled:
            # A long list is made a part at a time, a long pipeline executed so; in between it is the others' turn.
            self._scheduled = True
            self.factory.soon(self._take_turn)
        if unfinished != self._stalled:
            # What the client sends on may wait in the kernel.
            self._stalled = unfinished
            self._read_or_not()
        if held:
            self.factory.commit.wait(self._waiter, session.mark)
        elif self._closing and not unfinished:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def _take_turn(self):
        self._scheduled = False
        if self._lost:
            return
        if not self._choked:
            self.session.hold = self.factory.commit.holding
            self.session.resume()
        self.proceed()

    def _write(self):
        replies = self.session.take()
        if replies:
            self.transport.write(replies)

    def _timed_out(self):
        factory = self.factory
        left = self._heard_at + factory.idle_timeout - factory.reactor.seconds()
        if left > 0:
            self._timeout = factory.reactor.callLater(left, self._timed_out)
        elif self._closing:
            self._timeout = None
            self.transport.abortConnection()  # it had its time to take what was left
        else:
            factory.metrics.connections_idle += 1
            self.touch()
            self._timeout = factory.reactor.callLater(factory.idle_timeout, self._timed_out)
            self.drain()


class TextFactory(Factory):
    """Connections of the text protocol. soon: as Hub.soon; options as on the command line; `connections` is the set of open
    ones.
    """

    noisy = False
    protocol = TextProtocol

    def __init__(self, store, commit, metrics, reactor, soon, *, dialect="challenge", max_value_size=64 << 20,
                 max_connections=10_000, idle_timeout=0):
        self.store = store
        self.commit = commit
        self.metrics = metrics
        self.reactor = reactor
        self.soon = soon
        self.dialect = dialect
        self.max_value_size = max_value_size
        self.max_connections = max_connections
        self.idle_timeout = idle_timeout
        self.connections = set()
        self.residency = Residency()
        self.warmer = Warmer(metrics, reactor)
        self._row = command_rows(metrics)
        self._drained = None

    def new_session(self):
        return Session(self.store, self.metrics, self._row, self.dialect, self.max_value_size, self.residency)

    def buildProtocol(self, addr):
        if len(self.connections) >= self.max_connections:
            self.metrics.connections_refused += 1
            log.warn("a client was turned away: {limit} are connected (--max-connections)", limit=self.max_connections)
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
