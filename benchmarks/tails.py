"""How long a reader of kvcore waits while other work goes on in the same process.

    python benchmarks/tails.py [--keys N] [--seconds N]

A store belongs to one thread, so a read can only wait for what that thread is doing. A read is due every 200 us. Between
reads the thread does

    quiet       nothing
    library     32 puts in 80/20 order; the store is as a program opens it, and looks after itself
    served      32 puts and a flush; the jobs of the store's maintenance() run in a thread, paced, as in the server

Two times are taken of every read: get() alone, and from the moment it was due, with what it waited for. Prints both, and p99
busy / p99 quiet. The second ratio is a hard one: quiet is a microsecond or two here, without a network.
"""

import pathlib
import select
import shutil
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import click
import data
import measure

import kvcore

PERIOD = 200e-6
CHUNK = 32
TICK = 0.5                      # seconds between looks at what is due
SHARE = 3                       # a pause after a job is so many times as long as the job
GOAL = 2.0                      # p99 busy / p99 quiet


class Writer:
    """Overwrites in 80/20 order, a chunk at a time."""

    def __init__(self, keys):
        self.names = cycle([data.key(number) for number in data.hot(keys, min(keys, 200_000), 2)])
        self.puts = 0

    def chunk(self, store):
        for _ in range(CHUNK):
            self.puts += 1
            store.put(next(self.names), data.value(self.puts, 1))
        store.flush()


class Served:
    """The store's jobs on one thread, their ends on this one, between the chunks."""

    def __init__(self):
        self.pool = ThreadPoolExecutor(1)
        self.running = deque()
        self.steps = None
        self.own = None             # the job of steps that is running
        self.not_before = 0.0

    def execute(self, job):
        """What kvcore.open takes as its executor."""
        self.running.append((job, self.pool.submit(job.run), measure.clock()))

    def turn(self, store):
        """End what is done, and begin what is due."""
        while self.running and self.running[0][1].done():
            job, _, began = self.running.popleft()
            store.flush()
            job.finish()
            if job is self.own:
                self.own = None
                self.not_before = measure.clock() + SHARE * (measure.clock() - began)
        if self.own is not None or measure.clock() < self.not_before:
            return
        if self.steps is None:
            due = getattr(store, "maintenance", None)
            self.steps = due() if due is not None else None
        self.own = next(self.steps, None) if self.steps is not None else None
        if self.own is not None:
            self.execute(self.own)
        else:
            self.steps = None
            self.not_before = measure.clock() + TICK

    def end(self, store):
        """Wait for what is running; the store may be closed then."""
        self.pool.shutdown()
        while self.running:
            job = self.running.popleft()[0]
            store.flush()
            job.finish()


def drive(store, names, seconds, work):
    """Read one of names every PERIOD for so many seconds, and call work() after each; return both lists of seconds, sorted.

    A read that is late is done at once, and the next ones are due when they would have been: waiting is not hidden.
    """
    clock, get = measure.clock, store.get
    alone, waited = [], []
    names = cycle(names)
    due = clock() + PERIOD
    end = due + seconds
    while due < end:
        while clock() < due:
            select.select((), (), (), 0)        # lets the store's threads have the interpreter; does not sleep
        started = clock()
        get(next(names))
        done = clock()
        alone.append(done - started)
        waited.append(done - due)
        due += PERIOD
        work()
    return sorted(alone), sorted(waited)


def phase(name, directory, names, seconds, writer):
    """One phase on the filled directory: what drive() measured, and the stats of the store at its end."""
    served = Served()
    options = {"autoflush": False, "executor": served.execute} if name == "served" else {}
    with kvcore.open(directory, fsync="no", **options) as store:

        def work():
            if name != "quiet":
                writer.chunk(store)
            if name == "served":
                served.turn(store)

        measure.timed(store.get, names)
        taken = drive(store, names, seconds, work)
        served.end(store)
        return taken, store.stats()


def line(title, ordered, quiet):
    """p50, p99, max in us, and the p99 over the quiet one."""
    p50, p99, most = (measure.percentile(ordered, share) * 1e6 for share in (0.5, 0.99, 1.0))
    times = p99 / (measure.percentile(quiet, 0.99) * 1e6)
    return f"{title:<36}{p50:10.2f}{p99:10.2f}{most:12.1f}{times:12.2f}  {'met' if times <= GOAL else 'missed'}"


@click.command()
@click.option("--keys", default=200_000, show_default=True, type=click.IntRange(1000))
@click.option("--seconds", default=10.0, show_default=True, help="Of each phase.")
def main(keys, seconds):
    """Print a reader's p50, p99 and max: quiet, beside writes, beside writes and maintenance."""
    build = pathlib.Path(__file__).resolve().parent.parent / "build"
    build.mkdir(exist_ok=True)
    directory = tempfile.mkdtemp(dir=build, prefix="tails-")
    try:
        with kvcore.open(directory, fsync="no", autoflush=False) as store:
            for number in data.shuffled(keys, 1):
                store.put(data.key(number), data.value(number))
        report(directory, keys, seconds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def report(directory, keys, seconds):
    names = [data.key(number) for number in data.hot(keys, min(keys, 200_000), 3)]
    measure.quiet()
    click.echo(f"{keys:,} keys, a read every {PERIOD * 1e6:.0f} us; microseconds; the goal is p99 busy <= {GOAL:g}x quiet")
    click.echo(f"{'':<36}{'p50':>10}{'p99':>10}{'max':>12}{'p99/quiet':>12}")
    quiet = None
    for name in ("quiet", "library", "served"):
        writer = Writer(keys)
        taken, stats = phase(name, directory, names, seconds, writer)
        quiet = quiet or taken
        for title, ordered, calm in zip(("get", "get and what it waited for"), taken, quiet, strict=True):
            click.echo(line(f"{name}: {title}", ordered, calm))
        told = [f"{key} {stats[key]:,}" for key in ("compactions", "disk_bytes", "live_bytes") if key in stats]
        click.echo(f"    {writer.puts / seconds:,.0f} puts/s; at the end: {', '.join(told)}")


if __name__ == "__main__":
    main()
