"""How the parts of the server are put together, started in order and stopped in order."""

import os

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, TimeoutError
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

import kvcore
from kvcore.errors import KVError
from kvnet.background import BackgroundThreads
from kvnet.commit import Commit
from kvnet.exposition import Exposition
from kvnet.families import Collector, Sources
from kvnet.listen import Listener
from kvnet.maintenance import Maintenance, state_in_words
from kvnet.metrics import Metrics
from kvnet.ports import Ports
from kvnet.process import StartError, raise_descriptor_limit
from kvnet.protocol import TextFactory
from kvnet.scrubber import Scrubber
from kvnet.syncer import Syncer
from kvnet.vitals import Disk, Lag
from kvnet.web import MonitorSite

log = Logger()

# How long a stop waits for clients to take their replies before it cuts them off.
LINGER_SECONDS = 2


class Server(MultiService):
    """The whole server: a store and the ports that lead to it.

    `options` are those of kvnet.tap, checked. The ports are bound first: clients may connect from then on,
    and are answered when the store is open and the reactor runs.
    """

    def __init__(self, reactor, options):
        super().__init__()
        self.store = None
        self._reactor = reactor
        self._options = options
        self._gate = _Gate()
        self._commit = None
        self._disk = None
        self._exposition = None
        self._maintenance = None
        self._scrubber = None
        self._jobs = set()
        self._threads = BackgroundThreads()
        self._metrics = Metrics()
        self._lag = Lag(self._metrics, reactor)
        ports = Ports(reactor, self._metrics)
        self._hub = ports.hub
        site = MonitorSite(reactor, self._scrape, self._readiness)
        for name, factory in (("text", self._gate), ("metrics", site)):
            if options[name] is not None:
                Listener(ports, name, options[name], factory).setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Bind the ports. Raises StartError."""
        try:
            super().privilegedStartService()
        except StartError:
            self._release()
            raise

    def startService(self) -> None:
        """Open the store and serve it. Raises StartError."""
        try:
            self._open()
        except KVError as error:
            self._release()
            raise StartError(str(error)) from error
        except BaseException:
            self._release()
            raise
        super().startService()
        recovery = self.store.recovery
        for finding in recovery["messages"]:
            log.warn("recovery: {finding}", finding=finding)
        log.info(
            "kvstore {version}: data in {directory}, fsync {fsync}, {ports}; "
            "{keys} keys, opened in {seconds:.3f} s",
            version=kvcore.__version__,
            directory=os.path.abspath(self._options["data-dir"]),
            fsync=self.store.fsync,
            ports=", ".join(f"{listener.name} on {' and '.join(listener.addresses)}" for listener in self)
            or "no ports",
            keys=self.store.stats()["keys"],
            seconds=recovery["seconds"],
        )

    def stopService(self) -> Deferred:
        """Stop accepting, answer what was read, make it durable, close the store."""
        return Deferred.fromCoroutine(self._stop())

    def _open(self) -> None:
        options = self._options
        self._threads.start()
        self.store = kvcore.open(
            options["data-dir"],
            fsync=options["fsync"],
            segment_size=options["segment-size"],
            max_value_size=options["max-value-size"],
            compression=options["compression"] == "on",
            executor=self._execute,
        )
        raise_descriptor_limit(options["max-connections"])
        metrics = self._metrics
        self._scrubber = Scrubber(self.store, metrics, self._reactor, self._threads)
        self._commit = Commit(self.store, metrics, self._reactor, Syncer(self._hub), self._hub.soon)
        self._hub.gathers = self._commit.gathers
        self._gate.factory = TextFactory(
            self.store,
            self._commit,
            metrics,
            self._reactor,
            self._hub.soon,
            dialect=options["dialect"],
            max_value_size=options["max-value-size"],
            max_connections=options["max-connections"],
            idle_timeout=options["idle-timeout"],
        )
        self._commit.start()
        self._maintenance = Maintenance(self.store, metrics, self._reactor, self._threads)
        self._disk = Disk(self.store, options["data-dir"], self._reactor)
        self._exposition = Exposition(Collector(Sources(
            metrics, self.store, self._scrubber.scrub, self._commit, self._disk, options)))
        self._maintenance.start()
        self._scrubber.start()
        self._lag.start()

    def _release(self) -> None:
        """Take back what a start that failed has done."""
        for listener in self:
            listener.release()
        if self.store is not None:
            self.store.close()
            self.store = None
        self._threads.stop()

    async def _stop(self) -> None:
        await super().stopService()
        if self.store is None:
            return
        # Each step is worth doing when the one before it failed.
        cut = await self._attempt(self._drain)
        await self._attempt(self._lag.stop)
        await self._attempt(self._disk.stop)
        await self._attempt(self._maintenance.stop)
        await self._attempt(self._scrubber.stop)
        await self._attempt(self._commit.stop)
        while self._jobs:
            await DeferredList(self._jobs)
        await self._attempt(self.store.close)
        self._threads.stop()
        log.info("kvstore stopped{note}", note=", slow clients were cut off" if cut else "")

    async def _attempt(self, step):
        try:
            result = step()
            return await result if hasattr(result, "__await__") else result
        except Exception:
            _tell(Failure())

    async def _drain(self) -> bool:
        """Wait until each client has its replies, but not for ever. True when some were cut off."""
        factory = self._gate.factory
        try:
            await factory.drain().addTimeout(LINGER_SECONDS, self._reactor)
        except TimeoutError:
            factory.abort()
            return True
        return False

    def _execute(self, job) -> None:
        """Background work of the store: job.run() in a worker thread, then job.finish() here."""
        done = deferToThreadPool(self._reactor, self._threads, job.run)
        self._jobs.add(done)
        done.addCallback(lambda _: job.finish())
        done.addErrback(self._job_failed)
        done.addBoth(lambda _: self._jobs.discard(done))

    def _job_failed(self, failure: Failure) -> None:
        self._metrics.failed("sealing")
        _tell(failure)

    async def _scrape(self, content_type: str) -> bytes:
        await self._disk.look()
        return self._exposition.page(content_type)

    def _readiness(self) -> str:
        return "loading" if self.store is None else state_in_words(self.store)


def _tell(failure: Failure) -> None:
    """Log a failure: what the engine refused in its one line, anything else as the bug that it is."""
    if failure.check(KVError):
        log.critical("{reason}", reason=failure.getErrorMessage())
    else:
        log.failure("unexpected", failure)


class _Gate(Factory):
    """Stands at the bound ports for the factory that can be made only when the store is open.

    The reactor runs later than that, so nothing passes before.
    """

    noisy = False
    factory = None

    def buildProtocol(self, addr):
        return self.factory.buildProtocol(addr)

    def logPrefix(self) -> str:
        return "kvstore"
