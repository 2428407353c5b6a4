"""What is measured of a server. A scenario is a function that starts it and yields (protocol or None, figure, value).

A figure with a protocol belongs to that front end, one without to the server as a whole. figures.py says what they are
called.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace

import disturb
import servers
import talk

from kvnet.bench import run
from kvnet.bench.mix import MIXES, fixed
from kvnet.bench.workload import Workload

DISTURB = pathlib.Path(disturb.__file__)
WRITE, READ = 0, 1              # places in run.OPERATIONS
LOAD = run.Plan(clients=50, pipeline=32, read_ratio=0)
PREFIX = b"key:000000000"       # of 1,000 keys
READER = {"clients": 20, "read_ratio": 1.0}


@dataclass(frozen=True)
class Sizes:
    """How much there is to do."""

    seconds: float = 1.5        # of a measurement
    synced: float = 6.0         # of one with always, when a log is rewritten only every two or three seconds
    keys: int = 100_000         # of 256 bytes
    many: int = 1_000_000       # of 100 bytes
    scanned: int = 200_000      # keys while others get in the way
    pizzaria: int = 20_000
    idle: int = 10_000          # connections
    rest: float = 30.0          # seconds after the overwrites
    reader_rate: int = 2_000    # reads a second; with the overwrites less than one processor of clients can do
    writer_rate: int = 4_000    # overwrites a second
    redis_requests: int = 60_000        # of redis-benchmark, for each command; 16 times that in a pipeline


QUICK = Sizes(0.05, 0.05, 500, 2_000, 1_000, 50, 40, 0.1, 500, 500, 500)


@dataclass
class Bed:
    """Where and with what the scenarios run."""

    sizes: Sizes
    root: pathlib.Path
    processors: set             # those of the servers
    numbers: itertools.count = field(default_factory=itertools.count)

    @contextlib.contextmanager
    def directory(self):
        """A fresh one, taken away afterwards."""
        made = self.root / str(next(self.numbers))
        made.mkdir()
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)  # a child of redis-server may outlive it for a moment

    def start(self, server, directory, *words, **options):
        """A servers.Running."""
        return servers.Running(server, directory, self.processors, *words, **options)

    @contextlib.contextmanager
    def running(self, server, *words, **options):
        """One on a fresh directory."""
        with self.directory() as directory, self.start(server, directory, *words, **options) as running:
            yield running


def drive(running, protocol, workload, plan, sweep=False):
    """The run.Phase of a plan; sweep: over every key once. BenchError when an answer was wrong: no figure is worth that."""
    target = run.Target(talk.HOST, running.ports[protocol], protocol)
    sockets = run.connect(target, plan.clients)
    try:
        where = (target, sockets, plan, workload, lambda *progress: None)
        phase = run.sweep("load", *where) if sweep else run.measure(*where)
    finally:
        run.disconnect(sockets)
    misses = phase.tallies[READ].misses
    if phase.interrupted:
        raise KeyboardInterrupt
    if phase.errors or phase.wrong or misses:
        raise run.BenchError(f"{running.server.name}: {phase.errors} errors, {phase.wrong} wrong values, {misses} values "
                             f"that were not found. {' '.join(phase.remarks)}")
    return phase


def load(running, protocol, workload):
    """Write every key once."""
    return drive(running, protocol, workload, LOAD, sweep=True)


def rate(phase):
    """Commands a second."""
    return sum(tally.latency.count for tally in phase.tallies) / phase.seconds


def percentile(phase, operation, percent=99.0):
    """Microseconds."""
    return phase.tallies[operation].latency.percentile(percent) / 1e3


@dataclass(frozen=True)
class Case:
    """One measurement of throughput; the name begins that of its figures."""

    name: str
    read_ratio: float
    clients: int = 50
    pipeline: int = 1
    distribution: str = "uniform"

    def measured(self, running, protocol, workload, seconds):
        """Yield its figures."""
        plan = run.Plan(clients=self.clients, pipeline=self.pipeline, duration=seconds, read_ratio=self.read_ratio)
        phase = drive(running, protocol, workload, plan)
        yield protocol, self.name, rate(phase)
        yield protocol, f"{self.name}_p99", percentile(phase, READ if self.read_ratio else WRITE)


EVERYSEC = (
    Case("write", 0), Case("read", 1), Case("write_32", 0, pipeline=32), Case("read_32", 1, pipeline=32),
    Case("mix", 0.8, distribution="80-20"), Case("mix_200", 0.8, clients=200, distribution="80-20"),
    Case("mix_1", 0.8, clients=1, distribution="80-20"), Case("mix_32", 0.8, pipeline=32, distribution="80-20"))
ALWAYS = (Case("always", 0), Case("always_1", 0, clients=1), Case("always_200", 0, clients=200),
          Case("always_32", 0, pipeline=32))
NEVER = (Case("no", 0), Case("no_32", 0, pipeline=32))
ALWAYS_FREE = (Case("always_free", 0),)


def cases(bed, server, fsync, keys, mix, found):
    """Start a server for each of its protocols, write every key, and yield the figures of the cases."""
    seconds = bed.sizes.synced if fsync == "always" else bed.sizes.seconds
    workloads = {name: Workload(keys, mix, name) for name in {"uniform", *(case.distribution for case in found)}}
    for protocol in server.protocols:
        with bed.running(server, fsync) as running:
            load(running, protocol, workloads["uniform"])
            for case in found:
                yield from case.measured(running, protocol, workloads[case.distribution], seconds)


def everysec(bed, server):
    """Values of 256 bytes, the ordinary durability."""
    yield from cases(bed, server, "everysec", bed.sizes.keys, fixed(16, 256), EVERYSEC)


def always(bed, server):
    """Each write on the disk before it is acknowledged."""
    yield from cases(bed, server, "always", bed.sizes.keys, fixed(16, 256), ALWAYS)
    # Bound only on one side, both may find themselves on one processor, with another one idle.
    everywhere = replace(bed, processors=bed.processors | os.sched_getaffinity(0))
    with servers.placed(everywhere.processors):
        yield from cases(everywhere, server, "always", bed.sizes.keys, fixed(16, 256), ALWAYS_FREE)


def never(bed, server):
    """Writes that the system brings to the disk when it likes."""
    yield from cases(bed, server, "no", bed.sizes.keys, fixed(16, 256), NEVER)


def values(bed, server):
    """Large values, and the challenge's mix of large keys."""
    for kib in (10, 100):
        found = (Case(f"write_{kib}k", 0), Case(f"read_{kib}k", 1))
        yield from cases(bed, server, "everysec", max(10, bed.sizes.keys // kib // 5), fixed(16, kib << 10), found)
    found = (Case("pizzaria", 0.7, distribution="80-20"),)
    yield from cases(bed, server, "everysec", bed.sizes.pizzaria // 4, MIXES["pizzaria"], found)


def redis_benchmark(bed, server):
    """SET and GET by the load generator that comes with Redis."""
    if "resp" not in server.protocols or not shutil.which("redis-benchmark"):
        return
    with bed.running(server) as running:
        for pipeline in (32, 1):
            requests = bed.sizes.redis_requests * (16 if pipeline > 1 else 1)
            done = subprocess.run(
                ["redis-benchmark", "-h", talk.HOST, "-p", str(running.ports["resp"]), "--csv", "-t", "set,get", "-c", "50",
                 "-P", str(pipeline), "-d", "256", "-r", str(bed.sizes.keys), "-n", str(requests)],
                capture_output=True, text=True, timeout=servers.PATIENCE, check=False)
            found = dict(line.split(",")[:2] for line in done.stdout.replace('"', "").splitlines() if "," in line)
            if done.returncode or not {"SET", "GET"} <= set(found):
                raise run.BenchError(f"{server.name}: redis-benchmark failed: {done.stderr.strip() or done.stdout.strip()}")
            for command in ("SET", "GET"):
                yield "resp", f"tool_{command.lower()}_{pipeline}", float(found[command])


def empty_start(bed, server):
    """Seconds from starting a server on an empty directory to its first answer."""
    with bed.running(server) as running:
        return running.seconds


def many(bed, server):
    """Very many small keys: memory, lists, and starting with them."""
    protocol = server.protocols[0]
    workload = Workload(bed.sizes.many, fixed(16, 100))
    known = {"key": workload.key(0), "value": workload.value(0)}
    bare = min(empty_start(bed, server) for _ in range(2))
    yield None, "start", bare
    with bed.directory() as directory:
        with bed.start(server, directory) as running:
            load(running, protocol, workload)
            yield None, "memory", running.private_memory()
            yield from lists(running, workload)
        with bed.start(server, directory, **known) as running:
            yield None, "ready_killed", running.seconds - bare
            drive(running, protocol, workload, dataclasses.replace(LOAD, read_ratio=1), sweep=True)
            running.stop()
        with bed.start(server, directory, **known) as running:
            yield None, "ready_stopped", running.seconds - bare


def lists(running, workload):
    """All keys, and those of a prefix; the second time of each."""
    for protocol in running.server.protocols:
        with talk.connect(running.ports[protocol]) as connection:
            for figure, request in (("keys", talk.all_keys(protocol)), ("reads", talk.below(protocol, PREFIX))):
                talk.exchange(connection, protocol, request)
                seconds, received = talk.timed(connection, protocol, request)
                if received < min(workload.keys, 1000) * 17:
                    raise run.BenchError(f"{running.server.name}: {figure} answered {received} bytes: keys are missing")
                yield protocol, figure, seconds


def idle(bed, server):
    """What connections cost that were used once and then say nothing."""
    count = bed.sizes.idle
    protocol = server.protocols[0]
    workload = Workload(1, fixed(16, 100))
    with bed.running(server) as running:
        load(running, protocol, workload)
        before = running.private_memory()
        sockets = run.connect(run.Target(talk.HOST, running.ports[protocol], protocol), count)
        try:
            request, reply = talk.read(protocol, workload.key(0)), bytearray(4096)
            for connection in sockets:
                connection.settimeout(talk.TIMEOUT)
                connection.sendall(request)
                if not connection.recv_into(reply):
                    raise run.BenchError(f"{server.name} closed one of {count} connections")
            yield None, "idle", (running.private_memory() - before) / count
        finally:
            run.disconnect(sockets)


@contextlib.contextmanager
def disturbed(running, protocol, *kinds):
    """Clients of these kinds get in the way. BenchError when one of them ended before its time.

    Gives a dict that holds afterwards, by kind, how many lines each printed after its first one.
    """
    children, printed = [], {}
    try:
        for kind, *numbers in kinds:
            words = [sys.executable, str(DISTURB), kind, protocol, running.ports[protocol], *numbers]
            children.append((kind, subprocess.Popen(
                [str(word) for word in words], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(servers.ROOT)})))
            children[-1][1].stdout.readline()
        yield printed
        ended = [kind for kind, child in children if child.poll() is not None]
        if ended:
            raise run.BenchError(f"{running.server.name}: the client that was to {ended[0]} ended")
    finally:
        for kind, child in children:
            child.kill()
            printed[kind] = len(child.communicate()[0].splitlines())


def tails(bed, server):
    """How long a reader at a fixed rate waits: alone, and while others get in the way."""
    sizes = bed.sizes
    protocol = server.protocols[0]
    workload = Workload(sizes.scanned, fixed(16, 256))
    plan = run.Plan(**READER, rate=sizes.reader_rate, duration=max(2 * sizes.seconds, 0.2))
    writer = ("overwrite", sizes.scanned, 256, sizes.writer_rate)
    phases = (
        ("quiet",), ("scan", ("scan",)), ("deaf", ("deaf",)), ("drip", ("drip",)), ("overwrite", writer),
        ("all", ("scan",), ("deaf",), ("drip",), writer))
    with bed.running(server, extra=server.busy) as running:
        load(running, protocol, workload)
        load(running, protocol, workload)       # something to reclaim
        for name, *kinds in phases:
            with disturbed(running, protocol, *kinds) as printed:
                phase = drive(running, protocol, workload, plan)
            p99 = percentile(phase, READ)
            yield None, f"tail_{name}", p99
            if name == "quiet":
                quiet = p99
            else:
                yield None, f"tail_{name}_times", p99 / quiet
            if "scan" in printed:
                yield None, f"lists_{name}", printed["scan"] / phase.seconds


def disk(bed, server):
    """What the files take beside the keys and values that are alive."""
    protocol = server.protocols[0]
    workload = Workload(bed.sizes.pizzaria, MIXES["pizzaria"])
    live = workload.live_bytes()
    plan = run.Plan(clients=50, duration=None, requests=5 * workload.keys, read_ratio=0)
    with bed.directory() as directory:
        with bed.start(server, directory) as running:
            load(running, protocol, workload)
            running.stop()
            yield None, "disk_loaded", running.disk_bytes() / live
        with bed.start(server, directory) as running:
            drive(running, protocol, workload, plan)
            time.sleep(bed.sizes.rest)
            yield None, "disk_overwritten", running.disk_bytes() / live


# Those that are measured in every round, and those whose figures hardly differ from round to round.
EVERY = {"everysec": everysec, "always": always, "no": never, "values": values, "redis-benchmark": redis_benchmark,
         "many": many, "tails": tails}
ONCE = {"idle": idle, "disk": disk}
NAMES = (*EVERY, *ONCE)
# What is only asked of servers that keep writes as said; the others are measured with everysec.
FSYNC = {"always": "always", "no": "no"}
