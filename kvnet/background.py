"""Work that nobody waits for, in threads that give way: clients' commands come before it, also for the processor."""

import os
import threading
from functools import partial

from twisted.internet.threads import deferToThreadPool

NICE = 10  # of 19: enough to be preempted at once, too little to be starved of what it takes to give up the GIL

_own = threading.local()


def in_background(reactor, function):
    """Call `function` in a worker thread of low priority. Returns a Deferred of its result."""
    return deferToThreadPool(reactor, reactor.getThreadPool(), partial(_politely, function))


def _politely(function):
    # A thread cannot take its priority back: from here on it does everything so.
    if not getattr(_own, "polite", False) and threading.current_thread() is not threading.main_thread():
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), NICE))
        _own.polite = True
    return function()
