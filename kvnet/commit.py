"""Durability of replies: which wait for a sync, and who syncs when. docs/design.md ("Replies and durability").

    always     a chunk with writes waits; one flush and one fdatasync cover all that gathered meanwhile (group commit)
    everysec   nothing waits; a sync a second. When the last good one is too old, writes wait as above
    no         nothing waits, nobody syncs before the store closes
"""

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from kvcore.errors import KVError

PERIOD = 1.0  # seconds between syncs of everysec
PATIENCE = 2.0  # seconds since the last good one after which writes wait: what a power cut may cost
TICK = 0.25  # seconds between looks at the clock
SHORT = 0.001  # seconds: syncs that take less, and ...
FEW = 10  # ... that no more connections wait for, are done sooner in the reactor than with two thread switches

log = Logger()


class Commit:
    """Syncs of one store. store: kvcore.Store; metrics: Metrics; reactor: provides time and callLater; syncer: Syncer.

    `holding` (bool) is read by the protocols before they execute a chunk: whether replies to writes have to wait.
    """

    def __init__(self, store, metrics, reactor, syncer):
        self._store = store
        self._syncer = syncer
        self._metrics = metrics
        self._reactor = reactor
        self._always = store.fsync == "always"
        self.holding = self._always
        self._waiting = {}  # waiter -> the mark of its session that the next sync covers
        self._syncing = False
        self._scheduled = False
        self._idle = None  # Deferred of stop(), while a sync is under way
        self._typical = PATIENCE  # seconds, a running mean; at first a sync is taken to be slow
        self._started_at = self._good_at = reactor.seconds()
        self._clock = LoopingCall(self._tick)
        self._clock.clock = reactor

    def start(self):
        """Begin the periodic syncs of `everysec`."""
        if self._store.fsync == "everysec":
            self._clock.start(TICK, now=False)

    def stop(self):
        """Begin no more syncs. Returns a Deferred that fires when none is under way."""
        if self._clock.running:
            self._clock.stop()
        if not self._syncing:
            self._syncer.stop()
            return succeed(None)
        self._idle = Deferred()
        return self._idle.addCallback(lambda _: self._syncer.stop())

    @property
    def unsynced_age(self):
        """For how long the oldest bytes that are not on the disk have waited for it (float, seconds); 0: there are none."""
        if self._store.unsynced == 0 or (self._always and not self._syncing):
            return 0.0
        return self._reactor.seconds() - (self._started_at if self._always else self._good_at)

    def wait(self, waiter, mark):
        """Call waiter.released(mark) when all that its session answered up to mark is on the disk, or waiter.failed(reason);
        and waiter.abort() when that raises.
        """
        self._waiting[waiter] = mark
        if not self._syncing and not self._scheduled:
            # At the end of this turn of the reactor: what the other connections sent in it joins the group.
            self._scheduled = True
            self._reactor.callLater(0, self._begin)

    def _tick(self):
        now = self._reactor.seconds()
        if self._store.unsynced == 0:
            self._good_at = now
        elif now - self._good_at > PATIENCE:
            self.holding = True
        if now - self._started_at >= PERIOD - TICK / 2 and not self._syncing:
            self._begin()

    def _begin(self):
        self._scheduled = False
        if self._syncing:
            return  # _tick began one meanwhile; its end begins the next
        group, self._waiting = self._waiting, {}
        self._started_at = started = self._reactor.seconds()
        try:
            job = self._store.sync_job()
        except KVError as error:
            self._fail(group, error)
            return
        if job is None:
            self._succeed(group, started)
            return
        self._syncing = True
        if self._always and self._typical < SHORT and len(group) <= FEW:
            job.run()
            self._end(job, group, started)
        else:
            self._syncer.run(job, lambda: self._end(job, group, started))

    def _end(self, job, group, started):
        self._syncing = False
        self._typical += (job.seconds - self._typical) / 4
        try:
            job.finish()
        except KVError as error:
            self._metrics.sync_failures += 1
            self._fail(group, error)
        else:
            self._metrics.synced(job.seconds, len(group))
            if len(self._waiting) > FEW:
                self._go_on()  # before the answers: meanwhile the disk is at work
            self._succeed(group, started)
        if self._idle is not None:
            self._idle.callback(None)
        else:
            self._go_on()

    def _go_on(self):
        if self._waiting and not self._scheduled and not self._syncing and self._idle is None:
            self._begin()

    def _succeed(self, group, started):
        self._good_at = max(self._good_at, started)
        self.holding = self._always
        for waiter, mark in group.items():
            self._answer(waiter, waiter.released, mark)

    def _fail(self, group, error):
        joined, self._waiting = self._waiting, {}
        for waiter in {**group, **joined}:
            self._answer(waiter, waiter.failed, str(error))

    def _answer(self, waiter, how, what):
        try:
            how(what)
        except Exception:
            # One connection's trouble is not that of the others in the group.
            log.failure("a connection could not be answered after a sync")
            waiter.abort()
