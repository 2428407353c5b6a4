"""Threads for work that nobody waits for: they give way to clients' commands, also for the processor. docs/design.md
("Threads").
"""

import os
import threading

from twisted.python.threadpool import ThreadPool

from kvcore.pace import give_way

THREADS = 3  # maintenance, the scrub, and what the engine asks for
NICE = 10  # of 19: a share of 10 % beside a busy reactor; with less, one that holds the GIL might be starved of giving it up


class _PoliteThread(threading.Thread):
    def run(self):
        # A thread of the batch policy does not interrupt another one when it wakes up. One that was given a policy by
        # whoever runs the server keeps it.
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), NICE))
        give_way()
        super().run()


class BackgroundThreads(ThreadPool):
    """A pool of such threads. They are its own, as a thread cannot take its priority back."""

    threadFactory = _PoliteThread

    def __init__(self):
        super().__init__(0, THREADS, "background")
