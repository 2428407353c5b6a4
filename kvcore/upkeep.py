"""Maintenance of a store used as a library, in small pieces while it is written to. The server has its own driver."""

import weakref

from kvcore.errors import StorageError


class Upkeep:
    """Drives the maintenance() of `store`, which owns this object: one job at a time in `worker`, its end between writes."""

    def __init__(self, store, worker):
        self._store = weakref.proxy(store)
        self._worker = worker
        self._task = None
        self._job = None  # of the task: the worker has it

    def step(self):
        """Take in what the worker has done, and give it what is due next. What fails for want of space is tried again."""
        try:
            self.collect()
        except StorageError:
            return
        if self._job is None:
            try:
                self._next()
            except StorageError:
                # Without space, or with a broken disk, writing says so itself; what was begun is left in a state that holds.
                self._task = None

    def collect(self):
        """Finish what the worker has run. Raises StorageError."""
        ended = self._worker.ended
        while ended:
            self._drive(ended[0])
            if ended.popleft() is self._job:
                self._job = None

    def run(self, steps):
        """Run an iterator of Jobs to its end. Raises StorageError."""
        for job in steps:
            self._drive(job)

    def finish(self):
        """Let a task under way come to its end. Raises StorageError."""
        task, self._task = self._task, None
        job, self._job = self._job, None
        if job is not None:
            self._drive(job)
        if task is not None:
            self.run(task)

    def _next(self):
        if self._task is None:
            self._task = self._store.maintenance()
        if self._task is not None:
            self._job = next(self._task, None)
            if self._job is None:
                self._task = None
            else:
                self._worker.submit(self._job)

    def _drive(self, job):
        job.run()
        self._store.flush()
        job.finish()
