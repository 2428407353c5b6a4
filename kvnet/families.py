"""Every metric of the server, in one table: its name, kind, labels and meaning, and where its numbers come from.

/metrics (Collector) and docs/metrics.md (tools/metrics_doc.py) are made from it. Names follow Prometheus: base units, _total
on counters, no rates and no percentiles, every label set there from the start, never a key or an address as a label.
"""

import platform
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.utils import floatToGoString

import kvcore
from kvnet.metrics import COMMAND_SECONDS, GROUP_SIZES, LAG_SECONDS, OUTCOME_NAMES, SYNC_SECONDS, WORKS, Metrics
from kvnet.vitals import Disk, Process

STATES = ("ok", "full", "read-only")
SHOWN_OPTIONS = ("fsync", "dialect", "compression", "segment-size", "max-value-size", "idle-timeout")


class Sources:
    """Where the numbers come from: the parts of a server. options: those of kvnet.tap, checked."""

    def __init__(self, metrics: Metrics, store: Any, scrub: Any, commit: Any, disk: Disk, options: dict[str, Any]):
        self.metrics = metrics
        self.store = store
        self.scrub = scrub
        self.commit = commit
        self.disk = disk
        self.options = options
        self.process = Process()
        self.stats: dict[str, float] = {}

    def look(self) -> None:
        """Take the figures that are made for each scrape."""
        self.stats = self.store.stats()
        self.process.look()


class Family(NamedTuple):
    """One metric.

    read: its number, or a list of them: one for each label set, or of histograms the counts within each bound, the number
    and the sum for each. series: the label sets. apart: why no dashboard shows it, "" when one does.
    """

    name: str
    kind: str  # counter, gauge, histogram, info
    meaning: str
    read: Callable[[Sources], Any]
    labels: tuple[str, ...] = ()
    series: Callable[[Sources], list[tuple[str, ...]]] = lambda _: [()]
    bounds: tuple[float, ...] = ()
    apart: str = ""

    @property
    def unit(self) -> str:
        """seconds, bytes, or "" for plain numbers."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in ("seconds", "bytes") else ""


def _counter(name: str, meaning: str, read: Callable[[Sources], Any], **more: Any) -> Family:
    return Family(f"{name}_total", "counter", meaning, read, **more)


def _gauge(name: str, meaning: str, read: Callable[[Sources], Any], **more: Any) -> Family:
    return Family(name, "gauge", meaning, read, **more)


def _counted(name: str, meaning: str, attribute: str, **more: Any) -> Family:
    """A counter of kvnet.metrics."""
    return _counter(name, meaning, lambda s: getattr(s.metrics, attribute), **more)


def _stat(kind: Callable[..., Family], name: str, meaning: str, key: str, **more: Any) -> Family:
    """A figure of store.stats()."""
    return kind(name, meaning, lambda s: s.stats[key], **more)


def _opening(name: str, meaning: str, key: str, **more: Any) -> Family:
    """A figure of store.recovery."""
    return _gauge(name, meaning, lambda s: s.store.recovery[key], **more)


COMMANDS = (
    _counter(
        "kvstore_commands",
        "Commands executed, by front end, command and outcome. ok: done, for a read a hit; miss: the key was not there; "
        "error: refused or failed. The command `invalid` is everything that was none.",
        lambda s: s.metrics.outcome_numbers(),
        labels=("protocol", "command", "outcome"),
        series=lambda s: [(*row, outcome) for row in s.metrics.commands for outcome in OUTCOME_NAMES],
    ),
    Family(
        "kvstore_command_seconds",
        "histogram",
        "Time from receiving a command to handing its reply to the socket, the wait for a sync or for the disk included.",
        lambda s: s.metrics.command_numbers(),
        labels=("protocol", "command"),
        series=lambda s: s.metrics.commands,
        bounds=COMMAND_SECONDS,
    ),
    Family(
        "kvstore_reactor_lag_seconds",
        "histogram",
        "How late the server's one thread comes to what is due, looked at four times a second: what a command waits before "
        "it is received. Up to a millisecond of it is the timer's own.",
        lambda s: s.metrics.lag_numbers(),
        bounds=LAG_SECONDS,
    ),
    _counted(
        "kvstore_cold_waits",
        "Times that commands, or parts of lists, waited for records to be read from the disk: the data do not fit into "
        "memory.",
        "cold_waits",
    ),
    _counted("kvstore_turns_over", "Times that a client's pipelined commands gave way to other clients.", "turns_over"),
    _counted("kvstore_commands_too_long", "Commands dropped because they were too long.", "commands_too_long"),
)

CONNECTIONS = (
    _gauge("kvstore_connections", "Client connections open now.", lambda s: s.metrics.connections),
    _gauge(
        "kvstore_max_connections",
        "Client connections that may be open: --max-connections, or what the limit of open files (ulimit -n) allows.",
        lambda s: min(s.options["max-connections"], s.process.descriptors),
    ),
    _counted("kvstore_connections_opened", "Client connections accepted.", "connections_opened"),
    _counted(
        "kvstore_connections_refused", "Client connections closed at once, over --max-connections.", "connections_refused"),
    _counted("kvstore_connections_idle", "Client connections closed after --idle-timeout.", "connections_idle"),
    _counted("kvstore_accept_pauses", "Times that no clients were accepted for want of descriptors.", "accept_pauses"),
    _counted(
        "kvstore_reading_paused", "Times that a client was not read because it did not take its replies.", "reading_paused"),
    _counted("kvstore_received_bytes", "Bytes received from clients.", "received_bytes"),
    _counted("kvstore_sent_bytes", "Bytes of replies handed to sockets.", "sent_bytes"),
)

DURABILITY = (
    Family(
        "kvstore_fsync_seconds",
        "histogram",
        "Duration of fdatasync of the log.",
        lambda s: s.metrics.sync_numbers(),
        bounds=SYNC_SECONDS,
    ),
    Family(
        "kvstore_commit_group_size",
        "histogram",
        "Connections whose replies waited for the same sync.",
        lambda s: s.metrics.group_numbers(),
        bounds=GROUP_SIZES,
    ),
    _counted(
        "kvstore_fsync_failures", "Syncs of the log that failed. After the first the store is read-only.", "sync_failures"),
    _gauge(
        "kvstore_last_fsync_timestamp_seconds",
        "Unix time of the last good sync; 0: none yet. A server that nobody writes to does not sync.",
        lambda s: s.metrics.sync_good_at,
        apart="a server that nobody writes to does not sync; kvstore_unsynced_age_seconds says whether one is due",
    ),
    _stat(_gauge, "kvstore_unsynced_bytes", "Bytes written but not yet known to be on the disk.", "unsynced_bytes"),
    _gauge(
        "kvstore_unsynced_age_seconds",
        "How much of the past a power cut may take: for how long, at most, the oldest of the unsynced bytes have waited; 0: "
        "there are none. With --fsync=always, where none of them is acknowledged: how long the sync under way has taken.",
        lambda s: s.commit.unsynced_age,
    ),
)

STATE = (
    _gauge(
        "kvstore_state",
        "1 for the state the store is in, 0 for the others. ok; full: values are refused until there is space; read-only: "
        "a sync failed, nothing is written until a restart.",
        lambda s: [s.store.state == state for state in STATES],
        labels=("state",),
        series=lambda _: [(state,) for state in STATES],
    ),
    _stat(_gauge, "kvstore_keys", "Keys in the store.", "keys"),
    _counter(
        "kvstore_background_failures",
        "Work behind the clients' backs that failed; the log says why. maintenance: checkpoints, compaction, expiry; scrub; "
        "sealing: of full segments; reading: of data that are not in memory.",
        lambda s: s.metrics.failures,
        labels=("work",),
        series=lambda _: [(work,) for work in WORKS],
    ),
    Family(
        "kvstore_build_info",
        "info",
        "The running version, and that of Python.",
        lambda _: 1,
        labels=("version", "python"),
        series=lambda _: [(kvcore.__version__, platform.python_version())],
    ),
    Family(
        "kvstore_options_info",
        "info",
        "The options that the server was started with.",
        lambda _: 1,
        labels=tuple(name.replace("-", "_") for name in SHOWN_OPTIONS),
        series=lambda s: [tuple(str(s.options[name]) for name in SHOWN_OPTIONS)],
    ),
)

MEMORY = (
    _stat(_gauge, "kvstore_index_bytes", "Memory of the index.", "index_bytes"),
    _stat(_gauge, "kvstore_deadline_bytes", "Memory of the deadlines of keys that have one.", "deadline_bytes",
          apart="no command of the server sets deadlines; a directory that a program has written may bring some"),
    _gauge(
        "kvstore_private_memory_bytes",
        "Memory that the server takes for itself: what a limit has to leave room for.",
        lambda s: s.process.private_bytes,
    ),
    _gauge(
        "process_resident_memory_bytes",
        "Memory of the process with the mapped segments, which the system takes back when it needs to.",
        lambda s: s.process.resident_bytes,
    ),
    _counter("process_cpu_seconds", "Processor time of the process, of all its threads.", lambda s: s.process.cpu_seconds),
    _gauge("process_start_time_seconds", "Unix time at which the server started.", lambda s: s.process.started_at),
)

DISK = (
    _stat(_gauge, "kvstore_live_bytes", "Bytes of log records that are some key's value.", "live_bytes"),
    _stat(_gauge, "kvstore_dead_bytes", "Bytes of log records that no longer count, until compaction.", "dead_bytes"),
    _stat(_gauge, "kvstore_disk_bytes", "Bytes of all segment files, space taken ahead included.", "disk_bytes"),
    _stat(_gauge, "kvstore_segments", "Segment files.", "segments"),
    _gauge(
        "kvstore_filesystem_free_bytes",
        "Space that the server can still have on the file system of the data directory.",
        lambda s: s.disk.free_bytes,
    ),
    _gauge(
        "kvstore_filesystem_size_bytes", "Size of the file system of the data directory.", lambda s: s.disk.size_bytes),
    _stat(_counter, "kvstore_written_bytes", "Bytes of records written for clients.", "written_bytes"),
)

UPKEEP = (
    _stat(_counter, "kvstore_compactions", "Compactions begun.", "compactions"),
    _stat(_gauge, "kvstore_compaction_running", "1 while a compaction is under way, else 0.", "compaction_running"),
    _stat(
        _gauge,
        "kvstore_compaction_behind",
        "1 while so much can be reclaimed that compaction comes first, without pauses between steps, else 0.",
        "compaction_behind",
    ),
    _stat(
        _counter, "kvstore_compaction_seconds", "Time that the compactions which have ended took.", "compaction_seconds"),
    _stat(_counter, "kvstore_compaction_read_bytes", "Bytes of segments read by compaction.", "compaction_read_bytes"),
    _stat(
        _counter,
        "kvstore_compaction_written_bytes",
        "Bytes of records copied by compaction. Over kvstore_written_bytes_total: what write amplification adds.",
        "compaction_written_bytes",
    ),
    _stat(
        _counter, "kvstore_compaction_reclaimed_bytes", "Bytes of segments dropped by compaction.",
        "compaction_reclaimed_bytes"),
    _stat(
        _counter, "kvstore_compressed_from_bytes", "Bytes that values had which compaction compressed.",
        "compressed_from_bytes"),
    _stat(_counter, "kvstore_compressed_to_bytes", "Bytes that they have since.", "compressed_to_bytes"),
    _stat(_counter, "kvstore_checkpoints", "Checkpoints written.", "checkpoints"),
    _stat(_gauge, "kvstore_checkpoint_bytes", "Size of the last one; 0: none since the start.", "checkpoint_bytes",
          apart="it follows the number of keys: 16 bytes for each"),
    _stat(
        _gauge, "kvstore_last_checkpoint_timestamp_seconds",
        "Unix time of the last checkpoint; 0: none since the start.", "checkpoint_at"),
    _stat(
        _gauge, "kvstore_replay_bytes",
        "Bytes of log since the last checkpoint, or since the start: what an opening would have to replay after a crash.",
        "replay_bytes"),
)

RECOVERY = (
    _opening("kvstore_recovery_seconds", "How long the last opening took.", "seconds"),
    _opening("kvstore_recovery_records", "Records replayed by it, those that no checkpoint covered.", "records"),
    _opening("kvstore_recovery_bytes", "Bytes of these records.", "bytes"),
    _opening(
        "kvstore_recovery_torn_bytes", "Bytes of an unfinished record that it cut off: the trace of a crash, no damage.",
        "torn_bytes"),
    _opening("kvstore_recovery_damaged_ranges", "Damaged stretches of the log that it found.", "damaged_ranges"),
    _opening("kvstore_recovery_damaged_bytes", "Bytes of these stretches.", "damaged_bytes"),
    _opening("kvstore_recovery_lost_keys", "Keys whose value it knows to be in them: reading one is an error.", "lost_keys"),
)

CARE = (
    _stat(_counter, "kvstore_damaged_reads", "Reads that met a record whose checksum does not hold.", "damaged_reads"),
    _counter(
        "kvstore_scrubbed_bytes", "Bytes of sealed segments read and verified by the scrub.", lambda s: s.scrub.bytes),
    _gauge(
        "kvstore_scrub_damaged_ranges",
        "Damaged stretches that the scrub has found in segments that are still there.",
        lambda s: len(s.scrub.damage),
    ),
    _gauge(
        "kvstore_last_scrub_timestamp_seconds",
        "Unix time of the end of the last full pass of the scrub; 0: none yet.",
        lambda s: s.scrub.passed_at,
    ),
    _gauge(
        "kvstore_last_backup_timestamp_seconds", "Unix time of the last good backup; 0: none.", lambda s: s.disk.backup_at),
)

SECTIONS = {
    "Commands": COMMANDS,
    "Connections and network": CONNECTIONS,
    "Durability": DURABILITY,
    "State": STATE,
    "Memory and processor": MEMORY,
    "Disk": DISK,
    "Compaction and checkpoints": UPKEEP,
    "Recovery": RECOVERY,
    "Damage and backup": CARE,
}
FAMILIES = tuple(family for families in SECTIONS.values() for family in families)


class Collector:
    """The families and their numbers, as prometheus_client asks for them, or the numbers alone."""

    def __init__(self, sources: Sources):
        self._sources = sources

    def numbers(self) -> list[float]:
        """The numbers of all samples, in the order in which collect() has them."""
        self._sources.look()
        numbers: list[float] = []
        for family in FAMILIES:
            got = family.read(self._sources)
            if isinstance(got, list):
                numbers += got
            else:
                numbers.append(got)
        return numbers

    def collect(self) -> Iterator[Any]:
        """Yield the metric families."""
        numbers = iter(self.numbers())
        for family in FAMILIES:
            yield _made(family, family.series(self._sources), numbers)


_KINDS = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


def _made(family: Family, series: list[tuple[str, ...]], numbers: Iterator[float]) -> Any:
    if family.kind == "info":
        next(numbers)
        return InfoMetricFamily(
            family.name.removesuffix("_info"), family.meaning, dict(zip(family.labels, series[0], strict=True)))
    made = _KINDS[family.kind](family.name, family.meaning, labels=family.labels, unit=family.unit)
    for labels in series:
        if family.kind == "histogram":
            bounds = [*map(floatToGoString, family.bounds), "+Inf"]
            buckets = [(bound, next(numbers)) for bound in bounds]
            next(numbers)  # how many there are: that of the last bucket
            made.add_metric(labels, buckets, next(numbers))
        else:
            made.add_metric(labels, next(numbers))
    return made
