"""The challenge's figures from one command: a server of its own is loaded, used, killed, started again and compacted."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import kvcore
from kvnet.bench import run
from kvnet.bench.mix import MIXES
from kvnet.bench.workload import Workload

PATIENCE = 600  # seconds for the server to start or to stop
KILL_AFTER = 1.0  # seconds of writing before kill -9
READ_RATIO = 0.7
DURABILITY = {
    "always": "an acknowledged write is on the disk: it survives kill -9 and a power cut",
    "everysec": "an acknowledged write survives kill -9; a power cut takes at most about the last 2 s",
    "no": "an acknowledged write survives kill -9; a power cut takes what the system had not written yet",
}


class ChallengeError(Exception):
    """The server did not do what it was started for. The message is one line."""


@dataclass(frozen=True)
class Figure:
    """One result. `unit` is empty for a ratio, and `value` a str for what is no number."""

    name: str
    value: float | str
    unit: str
    how: str


class _Server:
    """`kvstore serve` in a process of its own, on free ports; ready when it is made."""

    def __init__(self, directory: Path, fsync: str):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}
        path = [str(Path(__file__).resolve().parents[2]), *filter(None, [kept.get("PYTHONPATH")])]
        words = ["serve", "--text=0", "--metrics=0", f"--fsync={fsync}", f"--data-dir={directory}"]
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvnet", *words],
            env={**kept, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip
        self._ready = threading.Event()
        self._said = ""
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._ready.wait(PATIENCE)
            self.seconds = time.monotonic() - begun
            self.opening = float(re.search(r"opened in ([\d.]+) s", self._said)[1])
            self.port, self.metrics_port = (
                int(re.search(rf"{name} on 127\.0\.0\.1:(\d+)", self._said)[1]) for name in ("text", "metrics"))
        except TypeError:
            self.kill()
            raise ChallengeError(f"the server did not start: {self._said.strip() or 'it said nothing'}") from None
        except BaseException:
            self.kill()
            raise

    def _listen(self) -> None:
        """Keep the last line until the one that says it is ready, then only drain."""
        for line in self.process.stdout:
            if not self._ready.is_set():
                self._said = line
            if "opened in" in line:
                self._ready.set()
        self._ready.set()

    def metric(self, name: str) -> float:
        """A metric without labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=PATIENCE) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return next(sample.value for family in families for sample in family.samples if sample.name == name)

    def kill(self) -> None:
        """kill -9; nothing when it has ended."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it as a service manager does. ChallengeError when it does not end well."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise ChallengeError(f"the server did not end within {PATIENCE} s") from None
        if status != 0:
            raise ChallengeError(f"the server ended with status {status}")


class Challenge:
    """The steps, in order; `result()` does them all."""

    def __init__(self, directory: str, entries: int, plan: run.Plan, fsync: str, progress: Callable):
        """directory: of the data, empty or not there yet. plan: the clients, and the duration of the mixed load."""
        self.directory = Path(directory)
        self.workload = Workload(entries, MIXES["pizzaria"], "80-20")
        self.plan = plan
        self.fsync = fsync
        self._progress = progress
        self.figures: list[Figure] = []

    def result(self) -> dict:
        """For JSON. ChallengeError or run.BenchError when a step fails; the server is ended in any case."""
        live = self.workload.live_bytes()
        server = _Server(self.directory, self.fsync)
        try:
            load = self._phase(server, "load", 0.0)
            loaded = disk_bytes(self.directory)
            mixed = self._phase(server, "run", READ_RATIO)
            used, fragmentation = disk_bytes(self.directory), self._fragmentation(server)
            self._kill_in_the_load(server)
            server = _Server(self.directory, self.fsync)
            check = self._phase(server, "check", 1.0)
            server.stop()
        finally:
            server.kill()
        compacted = self._compact()
        self._speed(load, mixed)
        self._add("recovery after kill -9", server.seconds, "s", "from starting the process to serving")
        self._add("of which opening the data", server.opening, "s", "as the server says")
        self._add("keys read back then", check.tallies[1].latency.count, "", "every one of them, and verified")
        self._add("storage overhead", loaded / live, "", "bytes on disk over those of keys and values, after the load")
        self._add("fragmentation", fragmentation, "", "dead bytes over those of the segments, after the mixed load")
        self._add("compaction ratio", used / compacted, "", "bytes on disk after the mixed load over those compacted")
        self._add("storage overhead, compacted", compacted / live, "", "bytes on disk over those of keys and values")
        self._add("durability class", self.fsync, "", DURABILITY[self.fsync])
        return {
            "entries": self.workload.keys,
            "live_bytes": live,
            "plan": asdict(self.plan),
            "figures": [asdict(figure) for figure in self.figures],
            "phases": {phase.name: phase.as_dict() for phase in (load, mixed, check)},
        }

    def _add(self, name: str, value: float | str, unit: str, how: str) -> None:
        self.figures.append(Figure(name, value, unit, how))

    def _clients(self, server: _Server, plan: run.Plan, drive: Callable) -> run.Phase:
        target = run.Target("127.0.0.1", server.port)
        sockets = run.connect(target, plan.clients)
        try:
            return drive(target, sockets, plan)
        finally:
            run.disconnect(sockets)

    def _phase(self, server: _Server, name: str, read_ratio: float) -> run.Phase:
        """The mixed load for "run", else every key once. ChallengeError when an answer was not right."""

        def drive(target, sockets, plan):
            if name == "run":
                return run.measure(target, sockets, plan, self.workload, self._progress)
            return run.sweep(name, target, sockets, plan, self.workload, self._progress)

        phase = self._clients(server, self._plan(read_ratio), drive)
        if phase.interrupted:
            raise KeyboardInterrupt
        misses = phase.tallies[1].misses
        if phase.errors or phase.wrong or misses:
            remark = f": {phase.remarks[0]}" if phase.remarks else ""
            raise ChallengeError(f"{name}: {phase.errors} errors, {phase.wrong} wrong values, {misses} keys lost{remark}")
        return phase

    def _plan(self, read_ratio: float, **changed) -> run.Plan:
        return run.Plan(**{**asdict(self.plan), "read_ratio": read_ratio, **changed})

    def _fragmentation(self, server: _Server) -> float:
        return server.metric("kvstore_dead_bytes") / server.metric("kvstore_disk_bytes")

    def _kill_in_the_load(self, server: _Server) -> None:
        """Write at full speed, and kill the server in the middle of it."""

        def progress(phase, seconds, answered):
            self._progress(phase, seconds, answered)
            if seconds >= KILL_AFTER and answered:
                server.kill()

        def drive(target, sockets, plan):
            return run.measure(target, sockets, plan, self.workload, progress)

        try:
            self._clients(server, self._plan(0.0, duration=PATIENCE), drive)
        except run.BenchError:
            if server.process.poll() is None:
                raise
        else:
            raise KeyboardInterrupt  # the only other end

    def _compact(self) -> int:
        with kvcore.open(str(self.directory), fsync="no") as store:
            store.compact()
        return disk_bytes(self.directory)

    def _speed(self, load: run.Phase, mixed: run.Phase) -> None:
        writes, reads = mixed.tallies
        share = f"{READ_RATIO:.0%} reads, 80/20"
        self._add("load throughput", load.tallies[0].latency.count / load.seconds, "ops/s", "every key written once")
        self._add("write throughput", writes.latency.count / mixed.seconds, "ops/s", f"of the mixed load: {share}")
        self._add("read throughput", reads.latency.count / mixed.seconds, "ops/s", "of the mixed load")
        self._add("write p95", writes.latency.percentile(95) / 1e6, "ms", "of the mixed load")
        self._add("read p95", reads.latency.percentile(95) / 1e6, "ms", "of the mixed load")


def disk_bytes(directory: Path) -> int:
    """What the files of a directory take on the disk."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a running server removes some
            total += path.stat().st_blocks * 512 if path.is_file() else 0
    return total


def lines(result: dict) -> list[str]:
    """The table of a result."""
    plan = result["plan"]
    rows = [(figure["name"], _number(figure["value"]), figure["unit"], figure["how"]) for figure in result["figures"]]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        f"{result['entries']:,} entries, {result['live_bytes'] / (1 << 20):,.1f} MiB of keys and values; "
        f"{plan['clients']} clients, {plan['duration']:g} s of mixed load",
        *(f"{row[0].ljust(widths[0])}  {row[1].rjust(widths[1])} {row[2].ljust(widths[2])}  {row[3]}" for row in rows),
    ]


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3f}"
