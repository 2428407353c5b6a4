"""The direct path: bytes go from the socket into a session and from its replies to the socket, without Python objects.

    socket --recv--> room of the session | run | replies --send--> socket
                                                        \\__ what it does not take --> Twisted's buffer --> socket

DirectServer and DirectUNIXServer are Twisted's own server transports with another doRead. Everything that happens less often
than a chunk stays theirs: buffering, producers, half-close, abort, errors. The protocol on top is the same as on any other
transport; it calls attach().
"""
from libc.errno cimport EAGAIN, EINTR, errno

from kvcore.types cimport Slice, uint8_t
from kvnet.session cimport Session, session_held, session_ready, session_received, session_room, session_sent

from twisted.internet import tcp, unix
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST


cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_NOSIGNAL
    ssize_t recv(int fd, void* data, size_t n, int flags)
    ssize_t send(int fd, const void* data, size_t n, int flags)


cdef class Pipe:
    """Between one socket and one session. transport: as below; protocol: has session, commit, touch() and proceed()."""

    cdef object transport
    cdef object protocol
    cdef object commit
    cdef Session session
    cdef int fd                     # -1 when nothing may be sent any more
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
        if self.session.stopped or session_held(self.session):
            self.protocol.proceed()
        return None

    def reply(self):
        """Send the replies that may go out."""
        reply(self)

    def close(self):
        """Send nothing any more: the descriptor may soon be another connection's."""
        self.fd = -1


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
        self._pipe = pipe = Pipe(self, protocol, protocol.session)
        self.doRead = pipe.receive
        return pipe.reply

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
            self._pipe.close()
            self._pipe = None


class DirectServer(Direct, tcp.Server):
    """A connection of a TCP port."""


class DirectUNIXServer(Direct, unix.Server):
    """A connection of a UNIX port."""
