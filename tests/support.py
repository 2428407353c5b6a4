"""What several tests share."""

import contextlib
import gc
import os

from twisted.trial.unittest import TestCase

import kvcore
from kvcore.segment import open_count


def at_once(job):
    """An executor that leaves nothing for later."""
    job.run()
    job.finish()


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
