"""`python -m tests.soak`: a real server under load for as long as you like, stopped and killed now and then.

Each connection owns its keys, so it knows what every read must answer, and which states a key may be in after a kill: the
acknowledged one, or one of those in flight. Printed once an interval: memory, descriptors, threads, disk. The status is 1
when a value was wrong or lost, or when one of these grew.
"""

import argparse
import contextlib
import math
import os
import random
import select
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from typing import NamedTuple

from tests.daemon import KVSTORE_SERVE, PATIENCE, Daemon
from tests.test_crash import DELETED, read_all

CONNECTIONS = 4
KEYS = 1000  # of each connection
RATE = 1000  # commands a second of each connection; a writer that never rests is another test
HOT = 0.2  # of the keys get 0.8 of the operations
READS = 0.7
DELETES = 0.1
WINDOW = 16  # commands in flight on a connection
SERVER = ("--fsync=everysec", "--segment-size=4MiB")

INTERVAL = 5  # seconds between two samples
LIFE = (40, 120)  # seconds that a server lives, at least and at most
WARM_UP = 0.4  # of the samples of a life that say nothing
LEAST_SAMPLES = 5
# How much the fitted line of a life may rise from its first sample to its last.
TOLERANCES = {"rss_mib": 8, "fds": 3, "threads": 3, "disk_ratio": 1.0}


class Sample(NamedTuple):
    """What a server uses. disk_ratio: bytes of its directory over those of the live keys and values."""

    seconds: float
    operations: int
    rss_mib: float
    fds: int
    threads: int
    disk_ratio: float

    def line(self):
        return (f"{self.seconds:7.1f} s  {self.operations:9d} operations  RssAnon {self.rss_mib:6.1f} MiB  {self.fds} fds  "
                f"{self.threads} threads  disk {self.disk_ratio:.2f} of live")


class Load(threading.Thread):
    """One connection's reads, writes and deletes, `rate` of them a second, until the server is gone.

    states: key -> list of states it may have.
    """

    def __init__(self, number, port, states, rng, rate):
        super().__init__(daemon=True)
        self.states = states
        self.answered = 0
        self.progress = threading.Event()
        self.wrong = []
        self._number = number
        self._rng = rng
        self._pause = WINDOW / rate
        self._sent = []  # (key, expected reply, new state or None)
        self._socket = socket.create_connection(("127.0.0.1", port))

    def run(self):
        said, heard, due = b"", b"", 0
        with self._socket, contextlib.suppress(ConnectionError):
            while True:
                now = time.monotonic()
                if not said and len(self._sent) < WINDOW and now >= due:
                    said = b"".join(self._command() for _ in range(WINDOW))
                    due = max(due, now - 1) + self._pause
                resting = not self._sent and not said
                readable, writable, _ = select.select(
                    [self._socket], [self._socket] if said else [], [], due - now if resting else PATIENCE)
                if writable:
                    said = said[self._socket.send(said):]
                if readable:
                    chunk = self._socket.recv(1 << 20)
                    if not chunk:
                        return
                    *replies, heard = (heard + chunk).split(b"\r")
                    for reply in replies:
                        self._check(reply)
                elif not writable and not resting:
                    self.wrong.append(f"no answer within {PATIENCE} s")
                    return

    def _command(self):
        rng = self._rng
        hot = int(KEYS * HOT)
        key = key_of(self._number, rng.randrange(hot) if rng.random() < 0.8 else rng.randrange(hot, KEYS))
        states = self.states.setdefault(key, [DELETED])
        kind = rng.random()
        if kind < READS:
            self._sent.append((key, states[-1], None))
            return b"read " + key + b"\r"
        if kind < READS + DELETES:
            self._sent.append((key, b"error" if states[-1] == DELETED else b"success", DELETED))
            states.append(DELETED)
            return b"delete " + key + b"\r"
        value = b"%d." % rng.randrange(1 << 60) + b"v" * rng.randrange(1000)
        self._sent.append((key, b"success", value))
        states.append(value)
        return b"write " + key + b"|" + value + b"\r"

    def _check(self, reply):
        key, expected, state = self._sent.pop(0)
        if reply != expected:
            self.wrong.append(f"{key[:12]}: {reply[:30]} and not {expected[:30]}")
        if state is not None:
            states = self.states[key]
            del states[:states.index(state, 1)]
        self.answered += 1
        self.progress.set()


def key_of(number, i):
    """A key (bytes): of ten, seven have up to 1 KB, two up to 10 KB, one up to 100 KB."""
    rng = random.Random(number * KEYS + i)
    low, high = rng.choices(((10, 1000), (1000, 10_000), (10_000, 100_000)), (70, 20, 10))[0]
    return (b"c%d-%d-" % (number, i)).ljust(rng.randrange(low, high), b"k")


class Soak:
    """One store in `directory` through the lives of many servers. `wrong` (list of str) is what should not have been."""

    def __init__(self, directory, rng, rate=math.inf):
        self.wrong = []
        self.operations = 0
        self._directory = directory
        self._rng = rng
        self._rate = rate
        self._states = [{} for _ in range(CONNECTIONS)]

    def life(self, number, until, patience=PATIENCE):
        """Start a server, check its contents, load it; when until(daemon, loads) returns, send the signal `number`."""
        daemon = Daemon(self._directory, *SERVER, command=KVSTORE_SERVE, patience=patience)
        try:
            self._check(daemon.port)
            loads = [Load(i, daemon.port, states, random.Random(self._rng.random()), self._rate)
                     for i, states in enumerate(self._states)]
            for load in loads:
                load.start()
            until(daemon, loads)
            status, _, err = daemon.stop(number)
        finally:
            daemon.kill()
        for load in loads:
            load.join()
            self.operations += load.answered
            self.wrong += load.wrong
        if number == signal.SIGTERM and (status, err) != (0, ""):
            self.wrong.append(f"the server ended with status {status}: {err}")

    def sample(self, daemon, loads, started):
        """A Sample of the server now."""
        proc = f"/proc/{daemon.process.pid}"
        with open(f"{proc}/status") as f:
            status = dict(line.split(":", 1) for line in f)
        live = sum(len(key) + len(states[-1]) for known in self._states for key, states in list(known.items())
                   if states[-1] != DELETED)
        return Sample(
            time.monotonic() - started, self.operations + sum(load.answered for load in loads),
            int(status["RssAnon"].split()[0]) / 1024, len(os.listdir(f"{proc}/fd")), int(status["Threads"]),
            disk_bytes(f"{self._directory}/data") / max(live, 1))

    def _check(self, port):
        """Every key is in a state that its connection knows; from then on it is that one."""
        for known in self._states:
            for key, value in read_all(port, list(known)).items() if known else ():
                if value not in known[key]:
                    self.wrong.append(f"{key[:12]} is {value[:30]} after a restart, and not {[s[:30] for s in known[key]]}")
                known[key] = [value]


def disk_bytes(directory):
    """Bytes that the files of a directory take on the disk."""
    total = 0
    for entry in os.scandir(directory):
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_blocks * 512
    return total


def slopes(samples):
    """What grew more than it may in one life (list of str), and the fitted growths (dict)."""
    settled = samples[int(len(samples) * WARM_UP):]
    if len(settled) < LEAST_SAMPLES:
        return [], {}
    seconds = [sample.seconds for sample in settled]
    span = seconds[-1] - seconds[0]
    growths = {
        name: statistics.linear_regression(seconds, [getattr(sample, name) for sample in settled]).slope * span
        for name in TOLERANCES
    }
    return [f"{name} grew by {growth:.2f} in {span:.0f} s, tolerated are {TOLERANCES[name]}"
            for name, growth in growths.items() if growth > TOLERANCES[name]], growths


def soak(seconds, seed, directory):
    """Run for so many seconds; return what should not have been (list of str)."""
    rng = random.Random(seed)
    run = Soak(directory, rng, RATE)
    started = time.monotonic()
    steep = []
    lives = 0
    while (left := seconds - (time.monotonic() - started)) > 0:
        # What is left of the last life is not worth another one.
        length = rng.uniform(*LIFE) if left > 2 * LIFE[0] else left
        samples = []
        ends = time.monotonic() + length

        def watch(daemon, loads, ends=ends, samples=samples):
            while (rest := ends - time.monotonic()) > 0 and all(load.is_alive() for load in loads):
                time.sleep(min(INTERVAL, rest))
                samples.append(run.sample(daemon, loads, started))
                print(samples[-1].line(), flush=True)

        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        run.life(number, watch, patience=length + PATIENCE)
        found, growths = slopes(samples)
        steep += found
        lives += 1
        told = ", ".join(f"{name} {growth:+.2f}" for name, growth in growths.items())
        print(f"{number.name} after {length:.0f} s; grown by: {told or 'too short to say'}", flush=True)
    run.life(signal.SIGTERM, lambda daemon, loads: None)
    print(f"{run.operations} operations, {lives} lives, {len(run.wrong)} wrong, {len(steep)} too steep; seed {seed}")
    return run.wrong + steep


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"soak: seed {options.seed}, {options.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        found = soak(options.minutes * 60, options.seed, directory)
    for line in found[:20]:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
