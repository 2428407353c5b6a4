"""Background work gives way: the priority of its threads, and that of nobody else."""

import os
import threading

from twisted.internet import defer
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import TestCase

from kvnet.background import NICE, in_background


def priority():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


class PriorityTest(TestCase):
    def setUp(self):
        from twisted.internet import reactor

        self.before = priority()
        self.pool = ThreadPool(0, 1)
        self.pool.start()
        self.addCleanup(self.pool.stop)
        self.patch(reactor, "getThreadPool", lambda: self.pool)
        self.reactor = reactor

    @defer.inlineCallbacks
    def test_it_has_a_low_priority_and_the_others_keep_theirs(self):
        for _ in range(2):
            found = yield in_background(self.reactor, priority)
            self.assertEqual(found, max(self.before, NICE))
        self.assertEqual(priority(), self.before)

    @defer.inlineCallbacks
    def test_who_is_lower_already_stays_so(self):
        yield deferToThreadPool(
            self.reactor, self.pool, lambda: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15))
        found = yield in_background(self.reactor, priority)
        self.assertEqual(found, 15)

    def test_errors_are_told(self):
        return self.assertFailure(in_background(self.reactor, lambda: 1 / 0), ZeroDivisionError)
