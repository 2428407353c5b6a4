"""What several tests share."""

import contextlib
import gc
import os
from collections import deque

from twisted.trial.unittest import TestCase

import kvcore
from kvcore.segment import open_count

with open("/proc/self/maps") as maps:
    SANITIZED = "libasan" in maps.read()


def at_once(job):
    """An executor that leaves nothing for later."""
    job.run()
    job.finish()


def resume(session):
    """Do what the session waits for, and go on with it."""
    if session.job is not None:
        session.job.run()
        session.job.finish()
        session.warm()
    session.resume()


class HandWorker:
    """In the place of the thread of a store used as a library: its jobs are run when the test says so."""

    def __init__(self, store, syncing):
        self.jobs, self.ended = [], deque()

    def submit(self, job):
        self.jobs.append(job)

    def work(self, jobs):
        """Run so many of those that wait."""
        for job in self.jobs[:jobs]:
            job.run()
            self.ended.append(job)
        del self.jobs[:jobs]

    def stop(self):
        self.work(len(self.jobs))


class PromptWorker(HandWorker):
    """One that runs them at once."""

    def submit(self, job):
        super().submit(job)
        self.work(1)


class StoreCase(TestCase):
    """Opens stores in a temporary directory; fails when a test leaves a segment open behind it."""

    def setUp(self):
        gc.collect()
        self._before = open_count()
        self.addCleanup(self._check_balance)
        self.dir = os.path.abspath(self.mktemp())

    def _check_balance(self):
        gc.collect()
        self.assertEqual(open_count() - self._before, 0, "segments were left open")

    def open(self, **options):
        """Open the test's store; it is closed after the test, if it is not before. Its jobs are done at once."""
        options.setdefault("fsync", "no")
        options.setdefault("executor", at_once)
        store = kvcore.open(self.dir, **options)
        self.addCleanup(store.close)
        return store

    def segment_paths(self):
        """Paths of the segment files, by id."""
        return [os.path.join(self.dir, name) for name in sorted(os.listdir(self.dir)) if name.endswith(".seg")]

    def forget_checkpoint(self):
        """As if the process had ended before it wrote one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.dir, "index.ckpt"))

    def contents(self, **options):
        """Open, read everything into a dict, close."""
        store = self.open(**options)
        try:
            return dict(store.items())
        finally:
            store.close()


class HandSyncer:
    """In the place of a Syncer: its jobs are among what is for worker threads, which the test moves."""

    def __init__(self, reactor):
        self._reactor = reactor

    def run(self, job, done):
        self._reactor.callInThreadWithCallback(lambda ok, result: done(), job.run)

    def stop(self):
        pass
