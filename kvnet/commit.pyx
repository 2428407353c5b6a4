from kvcore.store cimport store_run_sync
from kvnet.group cimport group_fail, group_join, group_size, group_succeed

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall

from kvcore.errors import KVError


cdef double PERIOD = 1.0        # seconds between syncs of everysec
cdef double PATIENCE = 2.0      # seconds since the last good one after which writes wait: what a power cut may cost
cdef double TICK = 0.25         # seconds between looks at the clock
cdef double SHORT = 0.0005      # seconds: syncs that take less are done in the reactor


cdef class Commit:
    """Syncs of one store. store: kvcore.Store; metrics: Metrics; reactor: provides time; syncer: Syncer; soon: Hub.soon."""

    def __cinit__(self, store, metrics, reactor, syncer, soon):
        self.store = store
        self.metrics = metrics
        self.reactor = reactor
        self.syncer = syncer
        self.soon = soon
        self.group = Group()
        self.always = store.fsync == "always"
        self.holding = self.always
        self.typical = PATIENCE         # at first a sync is taken to be slow
        self.started_at = self.good_at = reactor.seconds()
        self.ticks = LoopingCall(self.tick)
        self.ticks.clock = reactor

    def start(self):
        """Begin the periodic syncs of `everysec`."""
        if self.store.fsync == "everysec":
            self.ticks.start(TICK, now=False)

    def stop(self):
        """Begin no more syncs. Returns a Deferred that fires when none is under way."""
        if self.ticks.running:
            self.ticks.stop()
        if not self.syncing:
            self.syncer.stop()
            return succeed(None)
        self.idle = Deferred()
        return self.idle.addCallback(lambda _: self.syncer.stop())

    @property
    def gathers(self):
        """Whether all replies to writes wait for a sync (bool): one large group is the best."""
        return self.always

    @property
    def unsynced_age(self):
        """For how long the oldest bytes that are not on the disk have waited for it (float, seconds); 0: there are none."""
        if self.store.unsynced == 0 or (self.always and not self.syncing):
            return 0.0
        return self.reactor.seconds() - (self.started_at if self.always else self.good_at)

    def wait(self, Waiter waiter not None, uint64_t mark):
        """Tell waiter when all that its session answered up to mark is on the disk, or that it is not."""
        commit_wait(self, waiter, mark)

    def tick(self):
        """Look at the clock. Called TICK after TICK."""
        cdef double now = self.reactor.seconds()
        if self.store.unsynced == 0:
            self.good_at = now
        elif now - self.good_at > PATIENCE:
            self.holding = True
        if now - self.started_at >= PERIOD - TICK / 2 and not self.syncing:
            begin(self)

    def turn_over(self):
        """Nobody is ready any more: what they have sent is in the group."""
        self.scheduled = False
        go_on(self)

    def synced(self):
        """The job under way has run. Called by the syncer."""
        cdef Group served = self.served
        cdef double started = self.started_at
        job = self.job
        self.job = self.served = None
        self.syncing = False
        self.typical += (job.seconds - self.typical) / 4
        try:
            job.finish()
        except KVError as error:
            self.metrics.sync_failures += 1
            fail(self, served, error)
        else:
            self.metrics.synced(job.seconds, group_size(served))
            if not is_quick(self):
                go_on(self)     # before the answers: meanwhile the disk is at work
            answer(self, served, started)
        if self.idle is not None:
            self.idle.callback(None)
        elif not self.scheduled:
            go_on(self)


cdef int commit_wait(Commit c, Waiter waiter, uint64_t mark) except -1:
    if group_join(c.group, waiter, mark) and not c.syncing and not c.scheduled:
        # When nobody is ready any more: what the other connections have sent joins the group.
        c.scheduled = True
        c.soon(c.turn_over)
    return 0


cdef int go_on(Commit c) except -1:
    if group_size(c.group) and not c.syncing and c.idle is None:
        begin(c)
    return 0


# Is a sync so short that the reactor does it? What a second of `everysec` has brought may be much.
cdef inline bint is_quick(Commit c) noexcept:
    return c.always and c.typical < SHORT


cdef int begin(Commit c) except -1:
    cdef Group group = c.group
    c.group = Group()
    c.started_at = c.reactor.seconds()
    try:
        job = c.store.sync_job()
    except KVError as error:
        return fail(c, group, error)
    if job is None:
        return answer(c, group, c.started_at)
    c.syncing = True
    c.job = job
    c.served = group
    if is_quick(c):
        with nogil:
            store_run_sync(<void*>job)
        c.synced()
    else:
        c.syncer.run(job, c.synced)
    return 0


cdef int answer(Commit c, Group group, double started) except -1:
    c.good_at = max(c.good_at, started)
    c.holding = c.always
    return group_succeed(group)


cdef int fail(Commit c, Group group, object error) except -1:
    cdef Group joined = c.group
    c.group = Group()
    group_fail(group, str(error))
    return group_fail(joined, str(error))
