"""The scrub in the background: all sealed segments are read and verified once a day, slowly.

8 MiB a second is little for any disk, and a day's worth of it is 675 GiB; what takes longer goes on without a rest.
"""

import contextlib

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from kvcore.check import damage_lines
from kvcore.errors import KVError
from kvcore.scrub import Scrub

RATE = 8 << 20  # bytes a second
FIRST = 60.0  # seconds after the start, which has other work
EVERY = 86400.0  # seconds from the beginning of a pass to that of the next
AGAIN = 3600.0  # seconds after a pass that failed
LINES = 20  # damaged ranges logged in a pass; all are counted
KEYS = 10  # keys named in a line

log = Logger()


class Scrubber:
    """Scrubs one store. store: kvcore.Store; metrics: Metrics; reactor: provides time and callLater; threads: a pool.

    `scrub` has the counts.
    """

    def __init__(self, store, metrics, reactor, threads):
        self.scrub = Scrub(store, self._found)
        self._metrics = metrics
        self._reactor = reactor
        self._threads = threads
        self._pause = None
        self._stopped = False
        self._ended = succeed(None)
        self._lines = 0

    def start(self):
        """Begin."""
        self._ended = Deferred.fromCoroutine(self._run())

    def stop(self):
        """Verify nothing more. Returns a Deferred that fires when nothing is being read."""
        self._stopped = True
        if self._pause is not None:
            self._pause.cancel()
        return self._ended

    async def _run(self):
        await self._rest(FIRST)
        while not self._stopped:
            begun = self._reactor.seconds()
            pause = AGAIN
            try:
                await self._pass()
                pause = max(0.0, EVERY - (self._reactor.seconds() - begun))
            except KVError as error:
                self._metrics.failed("scrub")
                log.error("the scrub failed, tried again in {seconds:.0f} s: {reason}", seconds=AGAIN, reason=str(error))
            except Exception:
                self._metrics.failed("scrub")
                log.failure("the scrub failed, tried again in {seconds:.0f} s", seconds=AGAIN)
            await self._rest(pause)

    async def _pass(self):
        self._lines = 0
        for job in self.scrub.steps():
            await deferToThreadPool(self._reactor, self._threads, job.run)
            job.finish()
            await self._rest(max(0.0, job.bytes / RATE - job.seconds))
            if self._stopped:
                return

    async def _rest(self, seconds):
        if self._stopped:
            return
        self._pause = deferLater(self._reactor, seconds)
        with contextlib.suppress(CancelledError):
            await self._pause
        self._pause = None

    def _found(self, damage):
        self._lines += 1
        if self._lines <= LINES:
            place, *keys = damage_lines([damage])
            log.error("scrub: {finding}", finding=";".join([place, *keys[:KEYS]]).replace(";  ", "; "))
        elif self._lines == LINES + 1:
            log.error("scrub: more is damaged; the rest of this pass is only counted")
