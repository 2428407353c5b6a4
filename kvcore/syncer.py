"""`everysec` for a store used as a library: a thread that syncs once a second. The server has kvnet.commit instead.

The thread holds the GIL except inside fdatasync, and the store never gives the GIL up between two halves of a change, so
taking the list of what to sync and noting the result need no lock.
"""

import threading
import time
import weakref

from kvcore.errors import KVError

PERIOD = 1.0  # seconds between syncs
PATIENCE = 2.0  # seconds since the last good one after which writers wait: what a power cut may cost


class Syncer:
    """Keep `store` (held weakly) synced until stop()."""

    def __init__(self, store):
        self._store = weakref.ref(store)
        self._good_at = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvcore-syncer", daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopping.wait(PERIOD):
            store = self._store()
            if store is None:
                return
            try:
                self._sync(store)
            except KVError:
                pass  # the store is read-only now; the next write says so
            del store

    def _sync(self, store):
        job = store.sync_job()
        started = time.monotonic()
        if job is not None:
            job.run()
            job.finish()
        self._good_at = started

    def throttle(self):
        """Called by the owner after each write: wait for a sync when the last good one is too old. Raises ReadOnlyError."""
        if time.monotonic() - self._good_at > PATIENCE:
            self._sync(self._store())

    def stop(self):
        """End the thread; a sync under way is waited for."""
        self._stopping.set()
        self._thread.join()
