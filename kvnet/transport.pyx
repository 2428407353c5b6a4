"""The direct path: bytes go from the socket into a session and from its replies to the socket, without Python objects.

    socket --recv--> room of the session | run | replies --send--> socket
                                                        \\__ what it does not take --> Twisted's buffer --> socket

DirectServer and DirectUNIXServer are Twisted's own server transports with another doRead. Everything that happens less often
than a chunk stays theirs: buffering, producers, half-close, abort, errors. The protocol on top is the same as on any other
transport; it calls attach().
"""
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport strerror
from posix.unistd cimport close

from libc.stdint cimport uint64_t

from kvcore.types cimport Slice, uint8_t, uint32_t
from kvnet.session cimport (
    Session, session_held, session_mark, session_ready, session_received, session_release, session_room, session_sent)

from twisted.internet import tcp, unix
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()


cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CLOEXEC
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    enum: EPOLLIN
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int what, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int n, int milliseconds)


cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_NOSIGNAL
    ssize_t recv(int fd, void* data, size_t n, int flags)
    ssize_t send(int fd, const void* data, size_t n, int flags)


cdef enum:
    AT_ONCE = 256                   # connections served before the reactor has its turn


cdef class Hub:
    """What the reactor watches in the place of all direct connections: their readiness, as one descriptor.

    The reactor spends several microseconds of Python on each descriptor that is ready; this is done once for all of them.
    """

    cdef object reactor
    cdef int epoll                  # -1 while there is nothing to watch
    cdef dict pipes                 # descriptor -> Pipe
    cdef uint64_t turn

    def __cinit__(self, reactor):
        self.reactor = reactor
        self.epoll = -1
        self.pipes = {}

    def add(self, Pipe pipe not None):
        """Tell pipe when there is something to receive. Raises OSError."""
        if pipe.fd in self.pipes:
            return
        if self.epoll < 0:
            self.epoll = checked(epoll_create1(EPOLL_CLOEXEC))
            self.reactor.addReader(self)
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.fd = pipe.fd
        checked(epoll_ctl(self.epoll, EPOLL_CTL_ADD, pipe.fd, &event))
        self.pipes[pipe.fd] = pipe

    def remove(self, Pipe pipe not None):
        """No more of that."""
        if self.pipes.pop(pipe.fd, None) is None:
            return
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, pipe.fd, NULL)
        if not self.pipes:
            self.reactor.removeReader(self)
            close(self.epoll)
            self.epoll = -1

    def fileno(self):
        """As in IFileDescriptor."""
        return self.epoll

    def logPrefix(self):
        """As in ILoggingContext."""
        return "kvstore"

    def connectionLost(self, reason):
        """As in IFileDescriptor: the reactor gives up."""

    def doRead(self):
        """Serve the connections that are ready, and those that become so meanwhile, but none twice."""
        cdef epoll_event[AT_ONCE] events
        cdef Pipe pipe
        cdef int i, n, left = AT_ONCE
        self.turn += 1
        while left > 0 and self.epoll >= 0:
            n = epoll_wait(self.epoll, events, left, 0)
            left = left - n if n > 0 else 0
            for i in range(n):
                # One that was served before it may have ended it.
                pipe = self.pipes.get(events[i].data.fd)
                if pipe is not None and pipe.turn == self.turn:
                    left = 0
                elif pipe is not None:
                    pipe.turn = self.turn
                    serve(pipe)


# Whatever happens to one connection is not the others' trouble.
cdef int serve(Pipe pipe) except -1:
    transport = pipe.transport
    try:
        why = pipe.receive()
        if why is not None:
            transport.lost(why)
    except Exception:
        log.failure("a connection could not be served")
        transport.abortConnection()
    return 0


cdef int checked(int result) except -1:
    if result < 0:
        raise OSError(errno, strerror(errno).decode())
    return result


cdef class Pipe:
    """Between one socket and one session. transport: as below; protocol: has session, commit, touch() and proceed()."""

    cdef object transport
    cdef object protocol
    cdef object commit
    cdef Session session
    cdef int fd                     # -1 when nothing may be sent any more
    cdef uint64_t turn              # of the hub: the last in which this was served
    cdef bint timed
    cdef public bint buffering      # the transport has replies in its buffer: they go first

    def __cinit__(self, transport, protocol, Session session not None):
        self.transport = transport
        self.protocol = protocol
        self.commit = protocol.factory.commit
        self.timed = protocol.factory.idle_timeout
        self.session = session
        self.fd = transport.fileno()

    def receive(self):
        """The doRead of the transport: receive once, execute, reply."""
        cdef size_t room
        cdef uint8_t* place = session_room(self.session, &room)
        cdef ssize_t n = recv(self.fd, place, room, 0)
        if n == 0:
            return CONNECTION_DONE
        if n < 0:
            return None if errno in (EAGAIN, EINTR) else CONNECTION_LOST
        if self.timed:
            self.protocol.touch()
        self.session.hold = self.commit.holding
        session_received(self.session, n)
        reply(self)
        if self.session.stopped:
            self.protocol.proceed()
        elif session_held(self.session):
            self.commit.wait(self, session_mark(self.session))
        return None

    def released(self, uint64_t mark):
        """As of a protocol, but what is still held was announced when it came. Called by Commit."""
        session_release(self.session, mark)
        reply(self)
        if self.session.stopped and self.protocol is not None:
            self.protocol.proceed()

    def failed(self, reason):
        """Called by Commit."""
        self.session.fail(reason)
        reply(self)
        if self.session.stopped and self.protocol is not None:
            self.protocol.proceed()

    def abort(self):
        """Called by Commit."""
        if self.transport is not None:
            self.transport.abortConnection()

    def reply(self):
        """Send the replies that may go out."""
        reply(self)

    def close(self):
        """Send nothing any more: the descriptor may soon be another connection's. And let go of it, for prompt freeing."""
        self.fd = -1
        self.transport = self.protocol = None


cdef int reply(Pipe p) except -1:
    cdef Slice ready = session_ready(p.session)
    cdef ssize_t n = 0
    cdef bytes rest = None
    if ready.len and p.fd >= 0:
        if not p.buffering:
            # When it fails the transport will find out why: it is given all of it.
            n = max(send(p.fd, ready.ptr, ready.len, MSG_NOSIGNAL), 0)
        if <size_t>n < ready.len:
            rest = ready.ptr[n:ready.len]
    session_sent(p.session)
    if rest is not None:
        p.transport.write(rest)
    return 0


class Direct:
    """Makes a server transport of Twisted a direct one, once a protocol has attached itself."""

    _pipe = None

    def attach(self, protocol):
        """Read and write the buffers of protocol.session (a Session). Returns what sends its replies, a callable."""
        self.stopReading()
        self._pipe = pipe = Pipe(self, protocol, protocol.session)
        self.startReading()
        return pipe.reply

    def startReading(self):
        """Tell what is received."""
        if self._pipe is None:
            super().startReading()
        else:
            self.server.hub.add(self._pipe)

    def stopReading(self):
        """Receive nothing."""
        if self._pipe is None:
            super().stopReading()
        else:
            self.server.hub.remove(self._pipe)

    def lost(self, why):
        """There will be nothing more to receive; `why` as doRead would return it."""
        self.stopReading()
        if why is CONNECTION_DONE:
            self.readConnectionLost(Failure(why))
        else:
            self.stopWriting()
            self.connectionLost(Failure(why))

    def startWriting(self):
        """Something is in the buffer, or a close waits behind it."""
        if self._pipe is not None:
            self._pipe.buffering = True
        super().startWriting()

    def stopWriting(self):
        """The buffer is empty."""
        if self._pipe is not None:
            self._pipe.buffering = False
        super().stopWriting()

    def abortConnection(self):
        """Drop what waits, and cut the connection."""
        self._detach()
        super().abortConnection()

    def connectionLost(self, reason):
        """The end. Called by the reactor."""
        self._detach()
        super().connectionLost(reason)

    def _detach(self):
        if self._pipe is not None:
            self.stopReading()
            self._pipe.close()
            self._pipe = None


class DirectServer(Direct, tcp.Server):
    """A connection of a TCP port."""


class DirectUNIXServer(Direct, unix.Server):
    """A connection of a UNIX port."""
