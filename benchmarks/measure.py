"""Loops that time, and what the process and its directory weigh."""

import gc
import os
import time
from collections import deque

clock = time.perf_counter


def quiet():
    """No garbage collection from here on, as timeit does it."""
    gc.collect()
    gc.disable()


def timed(function, arguments):
    """Seconds for function(argument) over all arguments."""
    started = clock()
    for argument in arguments:
        function(argument)
    return clock() - started


def timed_pairs(function, firsts, seconds):
    """Seconds for function(first, second) over both lists."""
    started = clock()
    for first, second in zip(firsts, seconds):  # noqa: B905  both are of one length; strict= would be measured
        function(first, second)
    return clock() - started


def empty(arguments):
    """Seconds that timed() spends on itself."""
    started = clock()
    for _argument in arguments:
        pass
    return clock() - started


def empty_pairs(firsts, seconds):
    """Seconds that timed_pairs() spends on itself."""
    started = clock()
    for _first, _second in zip(firsts, seconds):  # noqa: B905
        pass
    return clock() - started


def timed_walks(walk, prefixes, budget=2.0, least=3):
    """Seconds of each walk(prefix), all results taken, until the prefixes or the budget (seconds) are used up."""
    taken = []
    for prefix in prefixes:
        started = clock()
        deque(walk(prefix), maxlen=0)
        taken.append(clock() - started)
        if len(taken) >= least and sum(taken) > budget:
            break
    return taken


def percentile(ordered, share):
    """The value below which `share` (0 to 1) of a sorted sequence lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def private_memory(process="self"):
    """Bytes of anonymous memory that are resident in a process (its id). Mapped files and the page cache do not count."""
    with open(f"/proc/{process}/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise OSError("this kernel reports no RssAnon")


def disk_bytes(directory):
    """Bytes that the files under directory take on the disk."""
    return sum(
        os.lstat(os.path.join(base, name)).st_blocks * 512 for base, _, names in os.walk(directory) for name in names)
