"""A run of the load generator: connections, threads, the time they take, and what came of it."""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kvnet.bench.histogram import Histogram
from kvnet.bench.loadgen import Loop
from kvnet.bench.workload import Workload

OPERATIONS = ("write", "read")
PERCENTILES = (50.0, 95.0, 99.0, 99.9)
TICK = 0.25  # seconds between two looks at the threads
CONNECT_TIMEOUT = 10.0  # seconds
SPARE_DESCRIPTORS = 32  # beside those of the connections


class BenchError(Exception):
    """The server cannot be reached, went away or does not speak the protocol. The message is one line."""


@dataclass(frozen=True)
class Target:
    """Where the server is, and what it speaks: "text" or "resp"."""

    host: str
    port: int
    protocol: str = "text"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Plan:
    """What the clients do: for `duration` seconds, or `requests` commands; closed loop, or `rate` commands a second.

    There are at least as many clients as threads.
    """

    clients: int = 50
    pipeline: int = 1
    threads: int = 1
    duration: float | None = 10.0
    requests: int | None = None
    rate: float | None = None
    read_ratio: float = 0.5
    seed: int = 1


class Tally:
    """What came of one operation: "write" or "read"."""

    def __init__(self, operation: str):
        self.operation = operation
        self.latency = Histogram()
        self.misses = self.errors = self.wrong = 0

    def as_dict(self, seconds: float) -> dict:
        """For JSON; the phase took so many seconds. Latencies in microseconds."""
        latency = self.latency
        return {
            "count": latency.count,
            "per_second": latency.count / seconds if seconds else 0.0,
            "mean_us": latency.mean / 1e3,
            **{f"p{percent:g}_us": latency.percentile(percent) / 1e3 for percent in PERCENTILES},
            "max_us": latency.longest / 1e3,
            "misses": self.misses,
            "errors": self.errors,
            "wrong": self.wrong,
            "histogram": [[ns / 1e3, count] for ns, count in latency.buckets()],
        }


class Phase:
    """What came of a phase: "load" or "run"."""

    def __init__(self, name: str):
        self.name = name
        self.seconds = 0.0
        self.tallies = tuple(Tally(operation) for operation in OPERATIONS)
        self.sent_bytes = self.received_bytes = self.unsent = 0
        self.series: list[tuple[float, int]] = []  # seconds since the beginning, commands answered by then
        self.remarks: list[str] = []  # the first errors and wrong values
        self.interrupted = False

    @property
    def wrong(self) -> int:
        """Reads that were answered with another value than was written."""
        return sum(tally.wrong for tally in self.tallies)

    @property
    def errors(self) -> int:
        """Commands that were answered with an error."""
        return sum(tally.errors for tally in self.tallies)

    def as_dict(self) -> dict:
        """For JSON."""
        answered = sum(tally.latency.count for tally in self.tallies)
        return {
            "seconds": self.seconds,
            "per_second": answered / self.seconds if self.seconds else 0.0,
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "unsent": self.unsent,
            "interrupted": self.interrupted,
            "operations": {
                t.operation: t.as_dict(self.seconds) for t in self.tallies if t.latency.count or t.errors or t.wrong
            },
            "remarks": self.remarks,
            "series": [[round(seconds, 3), count] for seconds, count in self.series],
        }


def connect(target: Target, count: int) -> list[socket.socket]:
    """So many connections to the server. BenchError when there are fewer."""
    _allow_descriptors(count + SPARE_DESCRIPTORS)
    made = []
    try:
        for _ in range(count):
            made.append(socket.create_connection((target.host, target.port), CONNECT_TIMEOUT))
            made[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made[-1].setblocking(False)
    except (OSError, UnicodeError) as error:
        disconnect(made)
        what = f"connection {len(made) + 1} of {count}: " if made else ""
        reason = getattr(error, "strerror", None) or str(error)
        raise BenchError(f"cannot connect to {target}: {what}{reason}") from error
    return made


def disconnect(sockets: list[socket.socket]) -> None:
    """Close them all."""
    for connection in sockets:
        connection.close()


def _allow_descriptors(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # connecting will say what is wrong
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def sweep(name: str, target: Target, sockets: list, plan: Plan, workload: Workload, progress: Callable) -> Phase:
    """Write every key once, or with the plan's read_ratio of 1 read it. `name`: that of the Phase.

    `progress` is called with the Phase, seconds and the commands answered so far.
    """
    loops = []
    for thread, fds in enumerate(_parts(sockets, plan.threads)):
        first, end = _share(workload.keys, thread, plan.threads)
        common = (workload, target.protocol, fds, plan.pipeline, plan.read_ratio)
        loops.append(Loop(*common, quota=end - first, first_rank=first))
    return _drive(name, target, loops, workload, progress)


def measure(target: Target, sockets: list, plan: Plan, workload: Workload, progress: Callable) -> Phase:
    """Do what the plan says. `progress`: as in sweep()."""
    quota, duration, step = plan.requests, plan.duration, 0.0
    if plan.rate is not None:
        step = plan.threads / plan.rate
        if quota is None:
            # What is due is sent even when it is late, for as long again; else the worst latencies would be left out.
            quota, duration = max(1, round(plan.rate * plan.duration)), 2 * plan.duration
    loops = []
    for thread, fds in enumerate(_parts(sockets, plan.threads)):
        first, end = _share(quota, thread, plan.threads) if quota is not None else (0, None)
        limits = {"quota": None if end is None else end - first, "duration": duration}
        rate = {"step": step, "lead": thread * step / plan.threads}
        seed = plan.seed << 20 | thread
        loops.append(Loop(workload, target.protocol, fds, plan.pipeline, plan.read_ratio, seed, **limits, **rate))
    return _drive("run", target, loops, workload, progress)


def _parts(sockets: list, threads: int) -> list[list[int]]:
    """The descriptors of each thread."""
    return [[connection.fileno() for connection in sockets[thread::threads]] for thread in range(threads)]


def _share(total: int, part: int, parts: int) -> tuple[int, int]:
    """The first number of a part of so many equal ones of 0 to total, and the one behind its last."""
    return total * part // parts, total * (part + 1) // parts


def _drive(name: str, target: Target, loops: list[Loop], workload: Workload, progress: Callable) -> Phase:
    """Run the loops, each in a thread, to their end; Ctrl-C ends them early. BenchError when one fails."""
    phase = Phase(name)
    threads = [threading.Thread(target=loop.run, daemon=True) for loop in loops]
    started = time.monotonic()
    try:
        for thread in threads:
            thread.start()
        second = 1
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(TICK / len(threads))
            elapsed, answered = time.monotonic() - started, sum(loop.answered for loop in loops)
            if elapsed >= second:
                phase.series.append((elapsed, answered))
                second = int(elapsed) + 1
            progress(phase, elapsed, answered)
            if any(loop.failure for loop in loops):
                _stop(loops)
    except KeyboardInterrupt:
        phase.interrupted = True
        _stop(loops)
        for thread in threads:
            thread.join()
    for loop in loops:
        if loop.failure:
            raise BenchError(f"{target} {loop.failure}")
    _collect(phase, loops, workload)
    return phase


def _stop(loops: list[Loop]) -> None:
    for loop in loops:
        loop.stop()


def _collect(phase: Phase, loops: list[Loop], workload: Workload) -> None:
    phase.seconds = (max(loop.span[1] for loop in loops) - min(loop.span[0] for loop in loops)) / 1e9
    for loop in loops:
        phase.sent_bytes += loop.sent_bytes
        phase.received_bytes += loop.received_bytes
        phase.unsent += loop.unsent
        for number, tally in enumerate(phase.tallies):
            tally.latency.merge(loop.latencies[number])
            misses, errors, wrong = loop.outcomes(number)
            tally.misses += misses
            tally.errors += errors
            tally.wrong += wrong
    remarks = []
    for loop in loops:
        for operation, number, head in loop.refusals_seen():
            remarks.append(f"{OPERATIONS[operation]} of {_shown(workload.key(number))}: {_shown(head)}")
        for _, number, length, head in loop.mistakes_seen():
            remarks.append(
                f"read of {_shown(workload.key(number))}: a wrong value of {length} bytes, {_shown(head)}; "
                f"written were {len(workload.value(number))}, {_shown(workload.value(number))}"
            )
    phase.remarks = list(dict.fromkeys(remarks))[:4]


def _shown(data: bytes) -> str:
    """The beginning of bytes from the wire, printable."""
    text = repr(data[:40])[1:]
    return text + "..." if len(data) > 40 else text
