"""The loop of one thread: some connections, each with so many commands under way, driven by epoll without the GIL.

A round of a connection: receive what there is, settle the replies in it, put as many new commands into its buffer, send
them with one call.

Closed loop: a latency runs from just before a command is handed to the socket to the arrival of its reply's last byte.

Fixed rate: command number j is due at start + lead + j * step, on connection j modulo their number. Its latency runs from
that moment, however late it is sent. So a server that pauses is charged for every command that should have come meanwhile,
and not for one per connection only ("coordinated omission").

Thread: run() belongs to one; stop() and the counters may be used from any other meanwhile.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, itimerspec, timespec
from posix.unistd cimport close

import os

from kvcore.types cimport Slice, uint8_t

from kvnet.bench.histogram cimport Counts, Histogram, counts_add
from kvnet.bench.wire cimport (
    COMMAND_ROOM, FOREIGN, GOOD, HEAD, MISS, MORE, OPERATIONS, READ, REFUSED, WRITE, WRONG, Operation, Outcome,
    Protocol, Reply, command_put, reply_reset, reply_take)
from kvnet.bench.workload cimport Workload, number_of, pick, random_next, value_of

from kvnet.bench.wire import PROTOCOLS


cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLET
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLRDHUP
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CLOEXEC
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int room, int milliseconds)

cdef extern from "<sys/timerfd.h>" nogil:
    enum: TFD_NONBLOCK
    enum: TFD_CLOEXEC
    enum: TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new, itimerspec* old)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_NOSIGNAL
    ssize_t recv(int fd, void* buffer, size_t n, int flags)
    ssize_t send(int fd, const void* buffer, size_t n, int flags)

cdef extern from *:
    void __builtin_prefetch(const void* address) nogil


cdef enum:
    INPUT = 262144              # bytes of one receive
    BATCH = 1048576             # bytes of commands after which they are sent before more are made
    EVENTS = 256
    TICK = 100                  # ms until a stop is noticed
    SAMPLES = 4                 # errors and wrong values that are kept, of each kind
    LINE = 64                   # bytes of a line of the cache
    LINES = 8                   # of a value that are fetched into it ahead, at most

cdef uint64_t SECOND = 1_000_000_000
cdef uint64_t PATIENCE = 30 * SECOND    # for a server that does not answer at all
cdef uint64_t NEVER = <uint64_t>-1

cdef enum Failure:
    NONE = 0
    CLOSED = 1
    SYSTEM = 2                  # a call failed; errno stands beside
    UNKNOWN_REPLY = 3
    SILENT = 4


cdef struct Pending:
    uint64_t since              # ns: what its latency runs from
    uint64_t number             # of the key
    Operation operation


cdef struct Connection:
    int fd
    bint blocked                # the socket was full: EPOLLOUT is asked for
    uint32_t first              # in the ring: the oldest command under way
    uint32_t flying             # how many are
    bint chosen                 # the next command is: `next`
    Pending next
    Pending* ring               # of `pipeline` places
    Reply reply
    uint8_t* out                # commands: the bytes from `sent` to `end` are to be sent
    size_t room
    size_t end
    size_t sent
    uint64_t due                # fixed rate: commands whose time has come and that were not made yet
    uint64_t turn               # fixed rate: commands made


cdef struct Sample:
    Operation operation
    uint64_t number
    uint64_t length
    size_t kept
    uint8_t[HEAD] head


cdef struct Kept:
    int count
    Sample[SAMPLES] samples


cdef class Loop:
    cdef Workload workload
    cdef Protocol protocol
    cdef uint32_t pipeline
    cdef uint64_t read_limit            # a random number below it makes a read
    cdef bint only_reads
    cdef bint in_turn                   # the keys by their ranks, from first_rank on; else as the distribution says
    cdef uint64_t first_rank
    cdef uint64_t random
    cdef uint64_t quota                 # commands to make
    cdef uint64_t duration              # ns after which no more are made
    cdef double step                    # ns between two commands at a fixed rate; 0: closed loop
    cdef double lead                    # fixed rate: ns from the beginning to the first command
    cdef Connection* connections
    cdef uint32_t count
    cdef int epoll
    cdef int timer
    cdef uint8_t* input
    cdef bint closing                   # no more commands are made
    cdef volatile bint stopping         # end at once
    cdef uint64_t issued
    cdef uint64_t released              # fixed rate: commands whose time has come
    cdef uint64_t flying
    cdef uint64_t now
    cdef uint64_t begun
    cdef uint64_t ended                 # when the last reply came
    cdef uint64_t heard                 # since when the server is silent though something is under way
    cdef Counts* counts[OPERATIONS]     # writes, reads
    cdef uint64_t[OPERATIONS] misses
    cdef uint64_t[OPERATIONS] refused
    cdef uint64_t[OPERATIONS] wrong
    cdef Kept refusals
    cdef Kept mistakes
    cdef Sample foreign
    cdef Failure failed
    cdef int system_error
    cdef readonly uint64_t sent_bytes
    cdef readonly uint64_t received_bytes
    cdef readonly tuple latencies       # of Histogram: writes, reads

    def __cinit__(self):
        self.epoll = self.timer = -1

    def __init__(
        self, Workload workload not None, protocol, fds, uint32_t pipeline, double read_ratio=0.0, uint64_t seed=0, *,
        quota=None, duration=None, double step=0.0, double lead=0.0, first_rank=None
    ):
        """fds: list of int, connected sockets that do not block and outlive this object; pipeline: commands under way on
        each. quota: how many commands (None: no limit); duration: for how many seconds. step: seconds between two
        commands at a fixed rate, which needs a quota; lead: seconds until the first. first_rank: take the keys by rank
        from this one on, not by the distribution.

        MemoryError; OSError when the system has no more descriptors.
        """
        cdef uint32_t i
        self.workload = workload
        self.protocol = PROTOCOLS.index(protocol)
        self.pipeline = pipeline
        self.only_reads = read_ratio >= 1
        self.read_limit = 0 if self.only_reads else <uint64_t>(read_ratio * 2.0 ** 64)
        self.random = seed
        self.quota = NEVER if quota is None else quota
        self.duration = NEVER if duration is None else <uint64_t>(duration * 1e9)
        self.step = step * 1e9
        self.lead = lead * 1e9
        self.in_turn = first_rank is not None
        self.first_rank = first_rank or 0
        self.latencies = (Histogram(), Histogram())
        for i in range(OPERATIONS):
            self.counts[i] = &(<Histogram>self.latencies[i]).counts
        self.input = <uint8_t*>malloc(INPUT)
        self.connections = <Connection*>calloc(len(fds), sizeof(Connection))
        if self.input == NULL or self.connections == NULL:
            raise MemoryError
        for fd in fds:
            self.connections[self.count].fd = fd
            self.connections[self.count].ring = <Pending*>calloc(pipeline, sizeof(Pending))
            reply_reset(&self.connections[self.count].reply)
            self.count += 1
            if self.connections[self.count - 1].ring == NULL:
                raise MemoryError
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.epoll < 0 or self.timer < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.count):
            free(self.connections[i].ring)
            free(self.connections[i].out)
        free(self.connections)
        free(self.input)
        if self.epoll >= 0:
            close(self.epoll)
        if self.timer >= 0:
            close(self.timer)

    def run(self):
        """Go on until the quota or the duration is reached and all replies have come, or stop() is called, or it fails."""
        with nogil:
            run(self)

    def stop(self):
        """End soon, without waiting for replies."""
        self.stopping = True

    @property
    def failure(self):
        """What the server did that ended the run (str), or None."""
        if self.failed == CLOSED:
            return "closed the connection"
        if self.failed == SYSTEM:
            return f"failed: {os.strerror(self.system_error)}"
        if self.failed == SILENT:
            return f"has not answered for {PATIENCE // SECOND} s"
        if self.failed == UNKNOWN_REPLY:
            head = PyBytes_FromStringAndSize(<char*>self.foreign.head, self.foreign.kept)
            return f"sent what is no reply of this protocol: {head!r}"
        return None

    @property
    def answered(self):
        """Commands answered with a value, a success or a miss (int)."""
        return self.counts[<int>WRITE].count + self.counts[<int>READ].count

    @property
    def span(self):
        """Nanoseconds of the monotonic clock (two int): when it began, and when the last reply came."""
        return self.begun, self.ended

    @property
    def unsent(self):
        """At a fixed rate: commands whose time came and that were never sent (int)."""
        return self.released - self.issued if self.step else 0

    def outcomes(self, int operation):
        """Of an operation (0: writes, 1: reads), how many were misses, errors and wrong values (int each)."""
        return self.misses[operation], self.refused[operation], self.wrong[operation]

    def refusals_seen(self):
        """The first errors: list of (operation, number of the key, text in bytes)."""
        return [(operation, number, head) for operation, number, _, head in samples(&self.refusals)]

    def mistakes_seen(self):
        """The first wrong values: list of (operation, number of the key, length, first bytes of the value)."""
        return samples(&self.mistakes)


cdef list samples(const Kept* kept):
    return [
        (kept.samples[i].operation, kept.samples[i].number, kept.samples[i].length,
         PyBytes_FromStringAndSize(<const char*>kept.samples[i].head, kept.samples[i].kept))
        for i in range(kept.count)
    ]


cdef uint64_t clock() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1_000_000_000 + <uint64_t>t.tv_nsec


cdef int fail(Loop l, Failure failure, int system_error) noexcept nogil:
    if l.failed == NONE:
        l.failed = failure
        l.system_error = system_error
    l.stopping = True
    return -1


cdef int watch(Loop l, int operation, int fd, uint32_t name, uint32_t events) noexcept nogil:
    """Have epoll tell when `events` come to be on fd, as `name`; those that are there already, too."""
    cdef epoll_event event
    event.events = events | <uint32_t>EPOLLET
    event.data.u32 = name
    return 0 if epoll_ctl(l.epoll, operation, fd, &event) == 0 else fail(l, SYSTEM, errno)


cdef int listen(Loop l, int operation, Connection* c) noexcept nogil:
    """Have it tell of a connection."""
    cdef uint32_t events = EPOLLIN | EPOLLRDHUP | (EPOLLOUT if c.blocked else 0)
    return watch(l, operation, c.fd, <uint32_t>(c - l.connections), events)


cdef int flush(Loop l, Connection* c) noexcept nogil:
    """Send what the socket takes."""
    cdef ssize_t n
    while c.sent < c.end:
        n = send(c.fd, c.out + c.sent, c.end - c.sent, MSG_NOSIGNAL)
        if n < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                return fail(l, SYSTEM, errno)
            if c.blocked:
                return 0
            c.blocked = True
            return listen(l, EPOLL_CTL_MOD, c)
        c.sent += n
        l.sent_bytes += n
    c.sent = c.end = 0
    if c.blocked:
        c.blocked = False
        return listen(l, EPOLL_CTL_MOD, c)
    return 0


cdef inline uint64_t due_at(Loop l, uint64_t command) noexcept nogil:
    return l.begun + <uint64_t>(l.lead + command * l.step)


cdef int make_room(Loop l, Connection* c, size_t n) noexcept nogil:
    """For n more bytes of commands."""
    cdef size_t room = 2 * c.room
    cdef uint8_t* out
    if c.room - c.end >= n:
        return 0
    if room < c.end + n:
        room = c.end + n
    out = <uint8_t*>realloc(c.out, room)
    if out == NULL:
        return fail(l, SYSTEM, ENOMEM)
    c.out = out
    c.room = room
    return 0


cdef void choose(Loop l, Pending* p) noexcept nogil:
    """What the next command is."""
    p.operation = READ if l.only_reads or random_next(&l.random) < l.read_limit else WRITE
    p.number = number_of(l.workload, l.first_rank + l.issued) if l.in_turn else pick(l.workload, &l.random)


cdef void fetch(Loop l, const Pending* p) noexcept nogil:
    """Have the beginning of a value loaded into the cache."""
    cdef Slice value = value_of(l.workload, p.number)
    cdef size_t i
    for i in range(min(value.len // LINE + 1, <size_t>LINES)):
        __builtin_prefetch(value.ptr + i * LINE)


cdef void foresee(Loop l, Connection* c) noexcept nogil:
    """Load what the next command and the next reply need while the kernel is asked for that reply."""
    if c.flying and c.ring[c.first].operation == READ:
        fetch(l, &c.ring[c.first])
    if not l.in_turn and not c.chosen:
        c.chosen = True
        choose(l, &c.next)
        if c.next.operation == WRITE:
            fetch(l, &c.next)


cdef int make_command(Loop l, Connection* c) noexcept nogil:
    """Put the next command behind the others of a connection."""
    cdef uint32_t place = c.first + c.flying
    cdef Pending* p = &c.ring[place if place < l.pipeline else place - l.pipeline]
    cdef size_t longest
    if c.chosen:
        p[0] = c.next
        c.chosen = False
    else:
        choose(l, p)
    longest = COMMAND_ROOM + l.workload.longest_key + (l.workload.longest_value if p.operation == WRITE else 0)
    if make_room(l, c, longest) < 0:
        return -1
    c.end = command_put(l.protocol, p.operation, l.workload, p.number, c.out + c.end) - c.out
    if l.step:
        p.since = due_at(l, c.turn * l.count + (c - l.connections))
        c.turn += 1
        c.due -= 1
    if l.flying == 0:
        l.heard = l.now
    c.flying += 1
    l.flying += 1
    l.issued += 1
    return 0


cdef inline bint wanted(Loop l, Connection* c) noexcept nogil:
    if l.closing or c.flying == l.pipeline:
        return False
    return c.due > 0 if l.step else l.issued < l.quota


cdef int pump(Loop l, Connection* c) noexcept nogil:
    """Make commands and send them, until enough are under way or the socket is full."""
    cdef uint32_t before, i, place
    cdef uint64_t now
    while c.end == 0 and wanted(l, c):
        before = c.flying
        while c.end < BATCH and wanted(l, c):
            if make_command(l, c) < 0:
                return -1
        if not l.step:
            now = clock()
            for i in range(before, c.flying):
                place = c.first + i
                c.ring[place if place < l.pipeline else place - l.pipeline].since = now
        if flush(l, c) < 0:
            return -1
    return 0


cdef void keep_sample(Sample* s, const Pending* p, const Reply* r) noexcept nogil:
    s.operation = p.operation
    s.number = p.number
    s.length = r.seen
    s.kept = r.kept
    memcpy(s.head, r.head, r.kept)


cdef inline void keep_first(Kept* kept, const Pending* p, const Reply* r) noexcept nogil:
    if kept.count < SAMPLES:
        keep_sample(&kept.samples[kept.count], p, r)
        kept.count += 1


cdef int settle(Loop l, const Pending* p, const Reply* r, Outcome outcome) noexcept nogil:
    """Count a reply that came at l.now."""
    if outcome == GOOD or outcome == MISS:
        # A clock that two processors see differently must not make it negative.
        counts_add(l.counts[<int>p.operation], l.now - p.since if l.now > p.since else 0)
        if outcome == MISS:
            l.misses[<int>p.operation] += 1
    elif outcome == REFUSED:
        l.refused[<int>p.operation] += 1
        keep_first(&l.refusals, p, r)
    elif outcome == WRONG:
        l.wrong[<int>p.operation] += 1
        keep_first(&l.mistakes, p, r)
    else:
        keep_sample(&l.foreign, p, r)
        return fail(l, UNKNOWN_REPLY, 0)
    l.ended = l.now
    return 0


cdef int receive(Loop l, Connection* c) noexcept nogil:
    """Receive once, and settle what came."""
    cdef ssize_t n = recv(c.fd, l.input, INPUT, 0)
    cdef size_t i = 0, used
    cdef Pending* p
    cdef Outcome outcome
    if n <= 0:
        if n == 0:
            return fail(l, CLOSED, 0)
        return 0 if errno == EAGAIN or errno == EINTR else fail(l, SYSTEM, errno)
    if n == INPUT and listen(l, EPOLL_CTL_MOD, c) < 0:
        return -1                       # there may be more
    l.now = l.heard = clock()
    l.received_bytes += n
    while i < <size_t>n:
        p = &c.ring[c.first]
        if c.flying == 0:
            c.reply.kept = min(<size_t>n - i, <size_t>HEAD)
            memcpy(c.reply.head, l.input + i, c.reply.kept)
            return settle(l, p, &c.reply, FOREIGN)
        outcome = reply_take(
            l.protocol, p.operation, value_of(l.workload, p.number), &c.reply, l.input + i, n - i, &used)
        i += used
        if outcome == MORE:
            break
        if settle(l, p, &c.reply, outcome) < 0:
            return -1
        reply_reset(&c.reply)
        c.first = c.first + 1 if c.first + 1 < l.pipeline else 0
        c.flying -= 1
        l.flying -= 1
    return 0


cdef int release(Loop l) noexcept nogil:
    """Fixed rate: send what is due, and have the timer tell when the next one is."""
    cdef uint64_t first = l.released, due, i
    cdef itimerspec at
    while True:
        due = due_at(l, l.released)
        if l.released == l.quota or due > l.now:
            break
        l.connections[l.released % l.count].due += 1
        l.released += 1
    for i in range(first, min(l.released, first + l.count)):
        if pump(l, &l.connections[i % l.count]) < 0:
            return -1
    at.it_interval.tv_sec = at.it_interval.tv_nsec = 0
    at.it_value.tv_sec = due // SECOND
    at.it_value.tv_nsec = due % SECOND
    if l.released == l.quota:
        at.it_value.tv_sec = at.it_value.tv_nsec = 0
    if timerfd_settime(l.timer, TFD_TIMER_ABSTIME, &at, NULL) < 0:
        return fail(l, SYSTEM, errno)
    return 0


cdef int start(Loop l) noexcept nogil:
    cdef uint32_t i
    for i in range(l.count):
        if listen(l, EPOLL_CTL_ADD, &l.connections[i]) < 0:
            return -1
    l.begun = l.now = l.ended = clock()
    if l.step:
        return 0 if watch(l, EPOLL_CTL_ADD, l.timer, l.count, EPOLLIN) == 0 and release(l) == 0 else -1
    for i in range(l.count):
        if pump(l, &l.connections[i]) < 0:
            return -1
    return 0


cdef int turn(Loop l) noexcept nogil:
    """Wait for something to do, and do it."""
    cdef epoll_event[EVENTS] events
    cdef Connection* c
    cdef int i, n = epoll_wait(l.epoll, events, EVENTS, TICK)
    if n < 0 and errno != EINTR:
        return fail(l, SYSTEM, errno)
    for i in range(n):
        if events[i].data.u32 == l.count:
            continue                    # the timer: see release()
        c = &l.connections[events[i].data.u32]
        if events[i].events & EPOLLOUT and flush(l, c) < 0:
            return -1
        if events[i].events & ~<uint32_t>EPOLLOUT:
            foresee(l, c)
            if receive(l, c) < 0 or (events[i].events & EPOLLRDHUP and listen(l, EPOLL_CTL_MOD, c) < 0):
                return -1
        if pump(l, c) < 0:
            return -1
    l.now = clock()
    if l.step and not l.closing:
        return release(l)
    return 0


cdef int run(Loop l) noexcept nogil:
    if start(l) < 0:
        return -1
    while not l.stopping:
        if l.now - l.begun >= l.duration:
            l.closing = True
        if l.flying == 0 and (l.closing or l.issued == l.quota):
            return 0
        if turn(l) < 0:
            return -1
        if l.flying and l.now - l.heard > PATIENCE:
            return fail(l, SILENT, 0)
    return 0
