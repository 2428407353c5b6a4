"""The thread that syncs: what it does for a store, and what the reactor hears. When it syncs stands in test_protocol."""

import errno
import os
import resource
import select
import threading

from twisted.internet import defer, reactor

from kvcore.crashfs import CrashFiles
from kvcore.errors import ReadOnlyError
from kvnet.syncer import Syncer
from tests.support import StoreCase, at_once


class SyncerTest(StoreCase):
    timeout = 60

    def setUp(self):
        super().setUp()
        self.dir = "/data"
        self.files = CrashFiles()
        self.store = self.open(files=self.files, fsync="always", autoflush=False, executor=at_once, segment_size=65536)
        self.syncer = Syncer(reactor)
        self.addCleanup(self.syncer.stop)

    def write(self, key, value=b"1"):
        self.store.put(key, value)
        self.store.flush()

    def run_job(self, job):
        """Returns a Deferred that fires, in another turn of the reactor, when it has run."""
        over = defer.Deferred()
        self.syncer.run(job, lambda: reactor.callLater(0, over.callback, None))
        return over

    @defer.inlineCallbacks
    def sync(self):
        job = self.store.sync_job()
        yield self.run_job(job)
        job.finish()
        self.assertGreater(job.seconds, 0)

    @defer.inlineCallbacks
    def test_what_was_flushed_is_on_the_disk(self):
        for i in range(300):
            self.write(b"%d" % i, bytes(1000))  # several segments
            if i % 100 == 99:
                self.assertGreater(self.store.unsynced, 0)
                yield self.sync()
                self.assertEqual(self.store.unsynced, 0)
                self.assertIsNone(self.store.sync_job())

    @defer.inlineCallbacks
    def test_what_comes_later_waits_for_the_next_one(self):
        self.write(b"a")
        running = self.sync()
        self.write(b"b")
        yield running
        self.assertGreater(self.store.unsynced, 0)
        yield self.sync()
        self.assertEqual(self.store.unsynced, 0)

    @defer.inlineCallbacks
    def test_error_of_the_disk(self):
        self.write(b"a")
        self.files.fail("fdatasync", 1, errno.EIO)
        job = self.store.sync_job()
        yield self.run_job(job)
        error = self.assertRaises(ReadOnlyError, job.finish)
        self.assertRegex(str(error), r"read-only until .*: cannot sync .*0000000001\.seg: Input/output error")
        self.assertGreater(self.store.unsynced, 0)

    @defer.inlineCallbacks
    def test_trouble_with_the_result_is_logged_and_the_next_one_runs(self):
        self.write(b"a")
        over = defer.Deferred()

        def done():
            reactor.callLater(0, over.callback, None)
            raise ZeroDivisionError

        self.syncer.run(self.store.sync_job(), done)
        yield over
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        yield self.sync()
        self.assertEqual(self.store.unsynced, 0)

    def test_it_needs_no_descriptor_later(self):
        self.write(b"a")
        job, over = self.store.sync_job(), []
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            self.assertRaises(OSError, os.dup, 0)
            self.syncer.run(job, lambda: over.append(True))
            select.select([self.syncer], [], [])
            self.syncer.doRead()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        job.finish()
        self.assertEqual((over, self.store.unsynced), ([True], 0))

    @defer.inlineCallbacks
    def test_its_thread_begins_with_the_first_job_and_ends_with_stop(self):
        def threads():
            return sum(thread.name == "sync" for thread in threading.enumerate())

        self.assertEqual(threads(), 0)
        for _ in range(2):
            self.write(b"a")
            yield self.sync()
            self.assertEqual((threads(), self.syncer in reactor.getReaders()), (1, True))
            self.syncer.stop()
            self.syncer.stop()
            self.assertEqual((threads(), self.syncer in reactor.getReaders()), (0, False))
