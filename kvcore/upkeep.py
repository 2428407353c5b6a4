"""Maintenance of a store used as a library, in small pieces while it is written to. The server has its own driver."""

import weakref

from kvcore.errors import StorageError

JOBS_AT_ONCE = 2


class Upkeep:
    """Drives the maintenance() of `store`, which owns this object, a few jobs at a time, so that no write waits long."""

    def __init__(self, store):
        self._store = weakref.proxy(store)
        self._task = None

    def step(self):
        """Go on with what is due, if anything. What fails for want of space is tried again later."""
        if self._task is None:
            self._task = self._store.maintenance()
        if self._task is None:
            return
        try:
            for _ in range(JOBS_AT_ONCE):
                self._drive(next(self._task))
        except (StopIteration, StorageError):
            # Without space, or with a broken disk, writing says so by itself; what was begun is left in a state that holds.
            self._task = None

    def run(self, steps):
        """Run an iterator of Jobs to its end. Raises StorageError."""
        for job in steps:
            self._drive(job)

    def finish(self):
        """Let a task under way come to its end. Raises StorageError."""
        task, self._task = self._task, None
        if task is not None:
            self.run(task)

    def _drive(self, job):
        job.run()
        self._store.flush()
        job.finish()
