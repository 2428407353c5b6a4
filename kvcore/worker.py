"""The thread of a store used as a library. The server brings its own threads.

It does the disk's part of jobs, in the order they come; their ends are the owner's. With `everysec` it also syncs once a
second. It holds the GIL except where it waits for the disk, and the store never gives the GIL up between two halves of a
change: so noting the result of a sync needs no lock.
"""

import queue
import threading
import time
import weakref
from collections import deque

from kvcore.errors import KVError

PERIOD = 1.0  # seconds between syncs


class Worker:
    """Runs jobs for `store` (held weakly), syncs it when `syncing` (bool). `ended`: jobs whose finish() is due, in order."""

    def __init__(self, store, syncing):
        self.ended = deque()
        self._jobs = jobs = queue.SimpleQueue()
        # A store that is dropped without close() ends the thread.
        self._store = weakref.ref(store, lambda _: jobs.put(None))
        self._syncing = syncing
        self._thread = None
        if syncing:
            self._start()

    def submit(self, job):
        """Have a Job run."""
        if self._thread is None:
            self._start()
        self._jobs.put(job)

    def stop(self):
        """End the thread when it has run what was submitted. submit() begins another."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join()

    def _start(self):
        self._thread = threading.Thread(target=self._run, name="kvcore-worker", daemon=True)
        self._thread.start()

    def _run(self):
        due = time.monotonic() + PERIOD
        while True:
            try:
                job = self._jobs.get(timeout=max(0.0, due - time.monotonic()) if self._syncing else None)
            except queue.Empty:
                pass
            else:
                if job is None:
                    return
                job.run()
                self.ended.append(job)
                job = None  # while it waits, the thread holds nothing of a store that may be dropped
            if self._syncing and time.monotonic() >= due:
                due = time.monotonic() + PERIOD
                self._sync()

    def _sync(self):
        store = self._store()
        if store is not None:
            try:
                store.sync_flushed()
            except KVError:
                pass  # the store is read-only now; the next write says so
