"""Who reads from the disk what a command needs, while the reactor serves others. docs/design.md ("Cold data")."""

from twisted.internet.defer import DeferredSemaphore
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

# Of the reactor's ten threads; what a scrape asks the disk must not stand in line behind readers.
THREADS = 6

log = Logger()


class Warmer:
    """Runs the jobs of sessions that wait for the disk. metrics: Metrics; reactor: provides threads."""

    def __init__(self, metrics, reactor):
        self._metrics = metrics
        self._reactor = reactor
        self._threads = DeferredSemaphore(THREADS)

    def bring(self, job, done):
        """Run and finish `job`, then call `done`, whatever came of it: who needed it finds out by reading."""
        running = self._threads.run(deferToThreadPool, self._reactor, self._reactor.getThreadPool(), job.run)
        running.addCallback(lambda _: job.finish())
        running.addErrback(self._failed)
        running.addCallback(lambda _: done())
        running.addErrback(lambda failure: log.failure("a connection could not go on", failure))

    def _failed(self, failure):
        self._metrics.failed("reading")
        log.failure("data could not be brought into memory", failure)
