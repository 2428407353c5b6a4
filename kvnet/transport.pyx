"""The direct path: bytes go from the socket into a session and from its replies to the socket, without Python objects.

    socket --recv--> room of the session | run | replies --send--> socket
                                                        \\__ what it does not take --> Twisted's buffer --> socket

DirectServer and DirectUNIXServer are Twisted's own server transports, but for what receives: the Hub. Everything that
happens less often than a chunk stays theirs: buffering, producers, half-close, abort, errors. The protocol on top is the
same as on any other transport; it calls attach().
"""
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport strerror
from posix.time cimport timespec
from posix.types cimport time_t
from posix.unistd cimport close

from libc.stdint cimport uint64_t

from kvcore.clock cimport clock
from kvcore.store cimport Store, store_expect
from kvcore.types cimport Slice, uint8_t, uint32_t
from kvnet.commit cimport Commit, commit_wait
from kvnet.group cimport Waiter
from kvnet.session cimport (
    PLACES, Session, session_coming, session_held, session_mark, session_ready, session_received, session_release,
    session_room, session_sent, session_settle)

from twisted.internet import tcp, unix
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()


cdef enum:
    FEW = 16                        # connections that are executed at a time, so that the first of them is answered soon


cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CLOEXEC
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    enum: EPOLL_CTL_MOD
    enum: EPOLLET
    enum: EPOLLIN
    enum: EPOLLPRI
    enum: EPOLLRDHUP
    ctypedef union epoll_data_t:
        void* ptr
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int what, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int n, int milliseconds)


cdef extern from "<poll.h>" nogil:
    enum: POLLIN
    struct pollfd:
        int fd
        short events
    int ppoll(pollfd* fds, unsigned long n, const timespec* wait, const void* signals)


cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_NOSIGNAL
    ssize_t recv(int fd, void* data, size_t n, int flags)
    ssize_t send(int fd, const void* data, size_t n, int flags)


cdef class Hub:
    """What the reactor watches in the place of all direct connections: their readiness, as one descriptor.

    The reactor spends several microseconds of Python on each descriptor that is ready; this is done once for all of them.
    Others that turn with the connections may stand here, too: addReader() and removeReader() are as in IReactorFDSet. turn:
    seconds until the reactor has its own; linger: seconds for which more is waited for before that.
    """

    cdef object reactor
    cdef int reactors               # the reactor's own epoll; -1: it has none
    cdef int epoll
    cdef dict readers               # reader -> its descriptor
    cdef list removed               # just now: an event may still name them
    cdef list calls                 # what comes when nobody is ready
    cdef bint busy                  # this is our turn
    cdef bint scheduled             # the reactor will call next_turn()
    cdef bint waited                # at the end of the last turn there were calls ...
    cdef bint owing                 # ... and they are still there: now they come, whoever is ready
    cdef size_t buffering           # connections whose transports have something to write
    cdef double longest
    cdef double linger
    cdef public bint gathers        # replies wait for a sync: sooner executed is not sooner answered

    def __cinit__(self, reactor, double turn=0.001, double linger=50e-6):
        self.epoll = -1
        self.reactor = reactor
        # Twisted has no public name for it, and no other way to learn whether anybody waits for a turn of the reactor.
        poller = getattr(reactor, "_poller", None)
        self.reactors = -1 if poller is None else poller.fileno()
        self.longest = turn
        self.linger = linger
        self.readers = {}
        self.removed = []
        self.calls = []
        # Now: when clients have taken the last descriptor it is too late.
        self.epoll = checked(epoll_create1(EPOLL_CLOEXEC))

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)

    def addReader(self, reader not None):
        """Call reader.doRead() when there is something to receive. Raises OSError."""
        if reader in self.readers:
            return
        cdef int fd = reader.fileno()
        watch(self, EPOLL_CTL_ADD, fd, reader)
        if not self.readers:
            self.reactor.addReader(self)
        self.readers[reader] = fd

    def removeReader(self, reader):
        """No more of that."""
        cdef object fd = self.readers.pop(reader, None)
        if fd is None:
            return
        if self.busy:
            self.removed.append(reader)
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, NULL)
        if not self.readers:
            self.reactor.removeReader(self)

    def fileno(self):
        """As in IFileDescriptor."""
        return self.epoll

    def logPrefix(self):
        """As in ILoggingContext."""
        return "kvstore"

    def connectionLost(self, reason):
        """As in IFileDescriptor: the reactor gives up."""

    def soon(self, call):
        """Call it when nobody is ready any more, and in the next turn of the reactor at the latest."""
        self.calls.append(call)
        if not self.busy:
            schedule(self)

    def next_turn(self):
        """What was left over in the last turn. Called by the reactor."""
        self.scheduled = False
        self.doRead()

    def doRead(self):
        """Serve those that are ready, and those that become so meanwhile."""
        cdef epoll_event[PLACES] events
        cdef double over = clock() + self.longest
        cdef int n = 1
        self.busy = True
        while n > 0:
            if clock() >= over:
                self.owing = self.waited
                self.waited = len(self.calls) > 0
                if is_wanted(self):
                    break
                over = clock() + self.longest
            n = epoll_wait(self.epoll, events, PLACES if self.gathers else FEW, 0)
            serve(self, events, n)
            self.removed.clear()
            if n <= 0 or self.owing:
                n = run_calls(self) or n
                if n <= 0:
                    n = linger(self)
        self.busy = False
        if self.calls:
            schedule(self)


# On a TCP connection it is an event that something has come, not that something is there: that would cost the kernel a
# second look at each that was ready. What ends a receive before all is received (the end of the stream, urgent data) has to
# be an event of its own then; on a UNIX socket a descriptor that was sent ends one, and is none.
cdef int watch(Hub hub, int what, int fd, object reader) except -1:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.ptr = <void*>reader
    if type(reader) is Pipe and (<Pipe>reader).edges:
        event.events |= <uint32_t>EPOLLET | EPOLLRDHUP | EPOLLPRI
    return checked(epoll_ctl(hub.epoll, what, fd, &event))


# Has the reactor anything to do but to call us?
cdef bint is_wanted(Hub hub) except -1:
    cdef epoll_event[2] events
    cdef int n
    if hub.reactors < 0:
        return True
    wait = hub.reactor.timeout()
    if wait is not None and wait <= 0:
        return True
    n = epoll_wait(hub.reactors, events, 2, 0)
    return n != 0 and not (n == 1 and events[0].data.fd == hub.epoll)


cdef int schedule(Hub hub) except -1:
    if not hub.scheduled:
        hub.scheduled = True
        hub.reactor.callLater(0, hub.next_turn)
    return 0


# How many there were.
cdef int run_calls(Hub hub) except -1:
    hub.owing = hub.waited = False
    if not hub.calls:
        return 0
    calls, hub.calls = hub.calls, []
    for call in calls:
        try:
            call()
        except Exception:
            log.failure("what was to come next failed")
    return len(calls)


# Wait a moment for what clients answer to their replies: a turn of the reactor would take as long. But not when the reactor
# has something to write. How many are ready.
cdef int linger(Hub hub) noexcept:
    cdef pollfd what
    cdef timespec wait
    cdef int n = 0
    if hub.readers and hub.buffering == 0:
        what.fd = hub.epoll
        what.events = POLLIN
        wait.tv_sec = <time_t>hub.linger
        wait.tv_nsec = <long>((hub.linger - wait.tv_sec) * 1e9)
        with nogil:
            n = ppoll(&what, 1, &wait, NULL)
    return max(n, 0)


# Serve n that are ready. Of connections all bytes are received first, then the commands executed: so their keys are known in
# time to load what they need into the cache; and one flush is enough for all. Whatever happens to one of them is not the
# others' trouble.
cdef int serve(Hub hub, epoll_event* events, int n) except -1:
    cdef ssize_t[PLACES] got
    cdef bint[PLACES] waits
    cdef Slice[PLACES] keys
    cdef size_t count = 0
    cdef Pipe pipe
    cdef int i, answered = 0
    for i in range(n):
        got[i] = 0
        reader = <object>events[i].data.ptr
        if hub.removed and reader in hub.removed:
            continue
        try:
            if type(reader) is not Pipe:
                reader.doRead()
                continue
            pipe = <Pipe>reader
            got[i] = receive(pipe, i, events[i].events)
            keys[count] = session_coming(pipe.session, i, got[i])
            count += keys[count].len > 0
        except Exception:
            give_up(reader)
    if count > 1:
        store_expect(pipe.store, keys, count)
    for i in range(n):
        waits[i] = False
        if got[i] > 0:
            pipe = <Pipe>events[i].data.ptr
            try:
                waits[i] = execute(pipe, i, got[i])
            except Exception:
                give_up(pipe)
            if not waits[i]:
                answered = settle(events, waits, answered, i)
    settle(events, waits, answered, n)
    return 0


# Answer those that wait for a flush, from the one at `start` up to the one at `end`. Returns end.
cdef int settle(epoll_event* events, const bint* waits, int start, int end) except -1:
    cdef Pipe pipe
    cdef int i
    for i in range(start, end):
        if waits[i]:
            pipe = <Pipe>events[i].data.ptr
            try:
                session_settle(pipe.session)
                respond(pipe)
            except Exception:
                give_up(pipe)
    return end


cdef int give_up(object reader) except -1:
    log.failure("a connection could not be served")
    if type(reader) is Pipe:
        reader.abort()
    return 0


cdef int checked(int result) except -1:
    if result < 0:
        raise OSError(errno, strerror(errno).decode())
    return result


cdef class Pipe(Waiter):
    """Between one socket and one session. owner: the protocol: has session, factory, touch() and proceed()."""

    cdef object transport
    cdef Commit commit
    cdef Session session
    cdef Store store
    cdef int fd                     # -1 when nothing may be sent any more
    cdef bint timed
    cdef bint edges                 # see watch()
    cdef Hub hub
    cdef bint buffering             # the transport has replies in its buffer: they go first

    def __cinit__(self, protocol, transport):
        self.transport = transport
        self.hub = transport.server.hub
        self.commit = protocol.factory.commit
        self.timed = protocol.factory.idle_timeout
        self.session = protocol.session
        self.store = protocol.factory.store
        self.fd = transport.fileno()
        self.edges = isinstance(transport, DirectServer)

    cdef int released(self, uint64_t mark) except -1:
        # Not by way of the protocol: what is still held was announced when it came.
        session_release(self.session, mark)
        return go_on(self)

    def failed(self, reason):
        """As in Waiter."""
        self.session.fail(reason)
        go_on(self)

    def abort(self):
        """Cut the connection."""
        if self.transport is not None:
            self.transport.abortConnection()

    def fileno(self):
        """As in IFileDescriptor."""
        return self.fd

    def reply(self):
        """Send the replies that may go out."""
        reply(self)

    def buffer(self, bint on):
        """The transport has something in its buffer, or nothing any more."""
        self.hub.buffering += on - self.buffering
        self.buffering = on

    def close(self):
        """As in Waiter. Sends nothing any more: the descriptor may soon be another connection's."""
        self.buffer(False)
        self.fd = -1
        self.transport = self.owner = None


# Receive once, to a place. How many bytes; 0 when there is nothing to do.
cdef ssize_t receive(Pipe p, int place, uint32_t event) except -1:
    cdef size_t room
    cdef uint8_t* start = session_room(p.session, place, &room)
    cdef ssize_t n = recv(p.fd, start, room, 0)
    if n < 0 and errno == EAGAIN:
        return 0
    if n == 0:
        p.transport.lost(CONNECTION_DONE)
    elif n < 0 and errno != EINTR:
        p.transport.lost(CONNECTION_LOST)
    elif p.edges and (n < 0 or n == <ssize_t>room or event != EPOLLIN):
        # There may be more. As an event, so that others have their turn.
        watch(p.hub, EPOLL_CTL_MOD, p.fd, p)
    return max(n, 0)


# Execute what has been received, and reply. True: session_settle() and respond() are to come.
cdef bint execute(Pipe p, int place, size_t n) except -1:
    if p.fd < 0:
        return False                # it was cut meanwhile
    if p.timed:
        p.owner.touch()
    p.session.hold = p.commit.holding
    if session_received(p.session, place, n):
        return True
    respond(p)
    return False


# Reply to what has been executed, and see to what has to come next.
cdef int respond(Pipe p) except -1:
    go_on(p)
    if session_held(p.session):
        commit_wait(p.commit, p, session_mark(p.session))
    return 0


# Something may go out.
cdef int go_on(Pipe p) except -1:
    reply(p)
    if p.session.stopped and p.owner is not None:
        p.owner.proceed()
    return 0


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
        self._pipe = pipe = Pipe(protocol, self)
        self.startReading()
        return pipe.reply

    def startReading(self):
        """Tell what is received."""
        if self._pipe is None:
            super().startReading()
        else:
            self.server.hub.addReader(self._pipe)

    def stopReading(self):
        """Receive nothing."""
        if self._pipe is None:
            super().stopReading()
        else:
            self.server.hub.removeReader(self._pipe)

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
            self._pipe.buffer(True)
        super().startWriting()

    def stopWriting(self):
        """The buffer is empty."""
        if self._pipe is not None:
            self._pipe.buffer(False)
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
