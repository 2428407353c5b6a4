"""What is not counted where it happens but looked at: the process, the file system, how late the reactor is."""

import os
import resource
import time

from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from kvnet.process import descriptors_for_clients

PERIOD = 0.25  # seconds between looks at how late the reactor is
PATIENCE = 1.0  # seconds that a scrape waits for the disk

PAGE = resource.getpagesize()

log = Logger()


class Process:
    """Memory and processor time of this process, in bytes and seconds.

    prometheus_client's own collector lists all open descriptors, which with ten thousand clients takes milliseconds.
    """

    def __init__(self):
        with open("/proc/self/stat", "rb") as file:
            started = int(file.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        self.started_at = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started
        self.look()

    def look(self):
        """Take the figures."""
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
        self.resident_bytes = resident * PAGE
        self.private_bytes = (resident - shared) * PAGE
        self.cpu_seconds = time.process_time()
        self.descriptors = descriptors_for_clients()


class Disk:
    """What the disk of a store says, in bytes and unix seconds. It is asked in a thread, for it may never answer.

    store: kvcore.Store; path: its directory; reactor: provides time and threads.
    """

    def __init__(self, store, path, reactor):
        self._store = store
        self._path = path
        self._reactor = reactor
        self._asking = None
        self._stopped = False
        self.free_bytes = self.size_bytes = self.backup_at = 0

    def look(self):
        """Take the figures. Returns a Deferred that fires when that is done, or takes too long: then the old ones stand."""
        if self._asking is not None or self._stopped:
            return succeed(None)
        looked = Deferred()
        self._asking = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._ask)
        self._asking.addErrback(lambda failure: log.failure("the disk could not be asked", failure))
        self._asking.addCallback(self._answered, looked)
        return looked.addTimeout(PATIENCE, self._reactor).addErrback(lambda failure: failure.trap(TimeoutError))

    def stop(self):
        """Ask no more. Returns a Deferred that fires when the disk is not being asked."""
        self._stopped = True
        ended = Deferred()
        if self._asking is None:
            return succeed(None)
        self._asking.addCallback(ended.callback)
        return ended

    def _ask(self):
        try:
            space = os.statvfs(self._path)
        except OSError:
            return  # whoever writes there will say so
        self.free_bytes = space.f_bavail * space.f_frsize
        self.size_bytes = space.f_blocks * space.f_frsize
        self.backup_at = self._store.last_backup

    def _answered(self, _, looked):
        self._asking = None
        looked.callback(None)


class Lag:
    """Looks now and then how late the reactor comes to what is due. metrics: Metrics; reactor: provides time."""

    def __init__(self, metrics, reactor):
        self._metrics = metrics
        self._reactor = reactor
        self._call = None

    def start(self):
        """Begin looking."""
        self._call = self._reactor.callLater(PERIOD, self._look, self._reactor.seconds() + PERIOD)

    def stop(self):
        """Look no more."""
        self._call.cancel()

    def _look(self, due):
        self._metrics.lagged(max(0.0, self._reactor.seconds() - due))
        self.start()
