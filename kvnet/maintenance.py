"""Background work on the store: checkpoints, compaction, expiry, in small steps between the clients' commands.

The store says what is due and yields Jobs; their disk work is done in worker threads, their ends, about a millisecond each,
here. While clients write, pauses follow each step, so that the reactor and the disk stay mostly theirs; when they do not,
there are none, and less is left lying about. Nor are there any while compaction is behind: the disk would fill up.
"""

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from kvcore.errors import KVError

TICK = 0.5  # seconds between looks at what is due
QUIET = 5.0  # seconds without a write after which the store counts as idle
SHARE = 3  # while clients write, pauses last so many times as long as the step before
LONGEST_PAUSE = 0.1  # seconds
SWEEP_PAUSE = 0.005  # seconds between slices of keys that have expired
CALM = 10.0  # seconds after which a store that is well again is said to be; a full disk may come and go
BACK_OFF = 60.0  # seconds after a failure, for a full disk to be noticed

log = Logger()


def state_in_words(store):
    """The state of a kvcore.Store (str): "ok", or the word for it, a colon, and what that means."""
    if store.state == "full":
        return "full: the disk has no space left; values are refused, reads and deletes go on"
    return f"{store.state}: {store.reason}" if store.reason else store.state


class Maintenance:
    """Looks after a store (kvcore.Store). metrics: Metrics; reactor: provides time and callLater; threads: a pool."""

    def __init__(self, store, metrics, reactor, threads):
        self._store = store
        self._metrics = metrics
        self._reactor = reactor
        self._threads = threads
        self._clock = LoopingCall(self._tick)
        self._clock.clock = reactor
        self._steps = None
        self._running = False  # a job is in a worker thread
        self._behind = False  # there is so much to reclaim that clients have to give way
        self._next_call = None
        self._next_sweep = None
        self._stopped = None
        self._written = -1
        self._written_at = reactor.seconds()
        self._state = "ok"  # as it was told last
        self._bad_at = 0.0
        self._not_before = 0.0

    def start(self):
        """Begin looking."""
        self._clock.start(TICK, now=False)

    def stop(self):
        """Begin nothing more; what is under way is left where a later opening can go on. Returns a Deferred."""
        if self._clock.running:
            self._clock.stop()
        for call in (self._next_call, self._next_sweep):
            if call is not None:
                call.cancel()
        self._next_call = self._next_sweep = None
        self._steps = None
        if not self._running:
            return succeed(None)
        self._stopped = Deferred()
        return self._stopped

    @property
    def idle(self):
        """Whether nothing has been written for a while (bool)."""
        return self._reactor.seconds() - self._written_at >= QUIET

    def _sweep(self):
        self._next_sweep = None
        try:
            more = self._store.sweep()
        except KVError as error:
            self._failed(error)
            return
        if more:
            # Many have expired at once: a slice of them, then the clients' turn.
            self._next_sweep = self._reactor.callLater(SWEEP_PAUSE, self._sweep)

    def _tick(self):
        now = self._reactor.seconds()
        written = self._store.stats()["written_bytes"]
        if written != self._written:
            self._written, self._written_at = written, now
        self._tell_state(now)
        if self._next_sweep is None:
            self._sweep()
        if self._steps is None and not self._running and now >= self._not_before:
            self._begin()

    def _begin(self):
        self._behind = self._store.stats()["compaction_behind"]
        try:
            self._steps = self._store.maintenance(idle=self.idle)
        except KVError as error:
            self._failed(error)
        if self._steps is not None:
            self._next()

    def _tell_state(self, now):
        state = self._store.state
        if state != "ok":
            self._bad_at = now
        if state != self._state and (state != "ok" or now - self._bad_at >= CALM):
            self._state = state
            (log.info if state == "ok" else log.error)("the store is {state}", state=state_in_words(self._store))

    def _next(self):
        self._next_call = None
        try:
            job = next(self._steps)
        except StopIteration:
            self._steps = None
            if self._behind:
                self._begin()
            return
        except KVError as error:
            self._failed(error)
            return
        self._running = True
        done = deferToThreadPool(self._reactor, self._threads, job.run)
        done.addCallback(lambda _: self._ran(job))
        done.addErrback(lambda failure: self._failed(failure.value))

    def _ran(self, job):
        self._running = False
        started = self._reactor.seconds()
        self._store.flush()
        job.finish()
        if self._stopped is not None:
            self._stopped.callback(None)
            return
        spent = job.seconds + self._reactor.seconds() - started
        pause = 0 if self.idle or self._behind else min(LONGEST_PAUSE, SHARE * spent)
        self._next_call = self._reactor.callLater(pause, self._next)

    def _failed(self, error):
        self._metrics.failed("maintenance")
        self._running = False
        self._steps = None
        self._not_before = self._reactor.seconds() + BACK_OFF
        log.error("maintenance failed, tried again in {seconds:.0f} s: {reason}", seconds=BACK_OFF, reason=str(error))
        if self._stopped is not None:
            self._stopped.callback(None)
