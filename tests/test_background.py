"""Background work gives way: the priority of its threads, and that of nobody else; long work in portions."""

import os
import threading

from twisted.internet import defer
from twisted.internet.threads import deferToThread, deferToThreadPool

from kvcore.pace import pauses
from kvnet.background import NICE, THREADS, BackgroundThreads
from tests.support import StoreCase
from tests.test_recovery import SMALL


def priority():
    return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


class BackgroundCase(StoreCase):
    def setUp(self):
        super().setUp()
        from twisted.internet import reactor

        self.before = priority()
        self.reactor = reactor
        self.threads = BackgroundThreads()
        self.threads.start()
        self.addCleanup(self.threads.stop)

    def run_there(self, function):
        return deferToThreadPool(self.reactor, self.threads, function)


class PortionsTest(BackgroundCase):
    @defer.inlineCallbacks
    def test_long_work_is_in_portions(self):
        jobs = []
        store = self.open(executor=jobs.append, autoflush=False, segment_size=SMALL)
        for number in range(2000):
            store.put(b"key%d" % number, b"v" * 20)
        store.flush()
        while jobs:
            job = jobs.pop(0)
            job.run()
            job.finish()
        made = []
        for job in store.maintenance():
            made.append((yield self.run_there(lambda job=job: (job.run(), pauses())[1])))
            job.finish()
        self.assertGreater(made[-1], 0)


class PriorityTest(BackgroundCase):
    @defer.inlineCallbacks
    def test_it_has_a_low_priority_and_the_others_keep_theirs(self):
        for _ in range(2):
            found = yield self.run_there(priority)
            self.assertEqual(found, (os.SCHED_BATCH, max(self.before[1], NICE)))
        found = yield deferToThread(priority)
        self.assertEqual((found, priority()), (self.before, self.before))

    @defer.inlineCallbacks
    def test_who_is_lower_already_stays_so(self):
        found = []

        def low():
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            thread = self.threads.threadFactory(target=lambda: found.append(priority()))
            thread.start()
            thread.join()

        thread = threading.Thread(target=low)
        thread.start()
        yield deferToThread(thread.join)
        self.assertEqual(found, [(os.SCHED_IDLE, 19)])

    @defer.inlineCallbacks
    def test_so_many_at_a_time(self):
        together = threading.Barrier(THREADS)
        yield defer.gatherResults([self.run_there(together.wait) for _ in range(THREADS)])
        self.assertLessEqual(len(self.threads.threads), THREADS)
