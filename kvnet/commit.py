"""Durability of replies: which wait for a sync, and who syncs when. docs/design.md ("Replies and durability").

    always     a chunk with writes waits; one flush and one fdatasync cover all that gathered meanwhile (group commit)
    everysec   nothing waits; a sync a second. When the last good one is too old, writes wait as above
    no         nothing waits, nobody syncs before the store closes
"""

import os

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall

from kvcore.errors import KVError
from kvnet.group import Gathering, Group

PERIOD = 1.0  # seconds between syncs of everysec
PATIENCE = 2.0  # seconds since the last good one after which writes wait: what a power cut may cost
TICK = 0.25  # seconds between looks at the clock
SHORT = 0.001  # seconds: syncs that take less are done in the reactor when it is alone, or when no more than ...
FEW = 10  # ... connections wait for them: sooner than with two thread switches
SERVED = 1e-5  # seconds that serving a connection takes, about
FADES = 0.99  # by a sync: how many waited


class Commit(Gathering):
    """Syncs of one store. store: kvcore.Store; metrics: Metrics; reactor: provides time; syncer: Syncer; soon: Hub.soon."""

    def __init__(self, store, metrics, reactor, syncer, soon):
        self._store = store
        self._syncer = syncer
        self._soon = soon
        self._metrics = metrics
        self._reactor = reactor
        self._always = store.fsync == "always"
        self.holding = self._always
        self._alone = len(os.sched_getaffinity(0)) == 1  # whoever syncs keeps everybody waiting
        self._most = 0.0  # connections that waited at a time, lately
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

    def gathered(self):
        """Somebody waits, or enough do. Called by wait()."""
        if len(self.group) == self.enough:
            self._go_on()
        elif not self._syncing and not self._scheduled:
            # When nobody is ready any more: what the other connections have sent joins the group.
            self._scheduled = True
            self._soon(self._turn_over)

    def _turn_over(self):
        self._scheduled = False
        self._go_on()

    def _tick(self):
        now = self._reactor.seconds()
        if self._store.unsynced == 0:
            self._good_at = now
        elif now - self._good_at > PATIENCE:
            self.holding = True
        if now - self._started_at >= PERIOD - TICK / 2 and not self._syncing:
            self._begin()

    def _begin(self):
        group, self.group = self.group, Group()
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
        if self._always and self._typical < SHORT and (self._alone or len(group) <= FEW):
            job.run()
            self._end(job, group, started)
        else:
            self._syncer.run(job, lambda: self._end(job, group, started))

    def _end(self, job, group, started):
        self._syncing = False
        self._typical += (job.seconds - self._typical) / 4
        self._share(len(group) + len(self.group))
        try:
            job.finish()
        except KVError as error:
            self._metrics.sync_failures += 1
            self._fail(group, error)
        else:
            self._metrics.synced(job.seconds, len(group))
            if len(self.group) > FEW:
                self._go_on()  # before the answers: meanwhile the disk is at work
            self._succeed(group, started)
        if self._idle is not None:
            self._idle.callback(None)
        elif not self._scheduled:
            self._go_on()

    def _share(self, waited):
        """Let two groups take turns, one at the disk while the other is served: where there are two processors for that, and
        the disk is quick enough not to hold up the half that comes next.
        """
        self._most = max(self._most * FADES, waited)
        halves = not self._alone and self._most > 2 * FEW and self._typical < self._most * SERVED
        self.enough = int(self._most / 2) if halves else 0

    def _go_on(self):
        if self.group and not self._syncing and self._idle is None:
            self._begin()

    def _succeed(self, group, started):
        self._good_at = max(self._good_at, started)
        self.holding = self._always
        group.succeed()

    def _fail(self, group, error):
        joined, self.group = self.group, Group()
        group.fail(str(error))
        joined.fail(str(error))
