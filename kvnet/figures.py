"""The metrics of a server as a table for people: groups of lines, human units. What is not known is shown as "-"."""

import itertools
import math
import time
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

LABEL, CELL = 15, 10  # widths
BLOCK = 2 + LABEL + CELL + 1 + CELL
GAP = 2

Line = tuple[str, str, str]  # label, value, and in some groups another value


class Look:
    """The metrics at one moment. text: as /metrics gives it; at: seconds of a clock that only goes forward."""

    def __init__(self, text: str, at: float):
        self.at = at
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels; NaN when there are none."""
        found = [value for own, value in self.samples.get(name, ()) if labels.items() <= own.items()]
        return sum(found) if found else math.nan

    def buckets(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """Upper bound and count of each bucket of a histogram, cumulative, ascending."""
        found: dict[float, float] = {}
        for own, value in self.samples.get(name + "_bucket", ()):
            if labels.items() <= own.items():
                bound = float(own["le"])
                found[bound] = found.get(bound, 0) + value
        return sorted(found.items())

    def as_dict(self) -> dict:
        """For JSON: a number by the name of its sample, or where there are labels a list of them, each with its value."""
        return {
            name: [{**own, "value": _number(value)} for own, value in samples] if samples[0][0] else _number(samples[0][1])
            for name, samples in self.samples.items()
        }


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def rate(look: Look, before: Look | None, name: str, **labels: str) -> float:
    """How much a counter grew per second between two looks; NaN when there was none before, or the server began anew."""
    if before is None:
        return math.nan
    grown = look.total(name, **labels) - before.total(name, **labels)
    return grown / (look.at - before.at) if grown >= 0 else math.nan


def quantile(look: Look, before: Look | None, q: float, name: str, **labels: str) -> float:
    """The quantile q of a histogram, of what came between two looks, else of everything; NaN when nothing came."""
    now = look.buckets(name, **labels)
    then = dict(before.buckets(name, **labels)) if before is not None else {}
    counts = [(bound, count - then.get(bound, 0)) for bound, count in now]
    if not counts or not counts[-1][1] > 0:
        return math.nan
    rank = q * counts[-1][1]
    low = below = 0.0
    for bound, count in counts:
        if count >= rank and count > below:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return math.nan


def scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    """Three digits and a unit; the units go up by the base."""
    if math.isnan(value):
        return "-"
    unit = 0
    while unit + 1 < len(units) and abs(value) >= base:
        value, unit = value / base, unit + 1
    digits = 0 if abs(value) >= 100 or (unit == 0 and value == int(value)) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {units[unit]}".rstrip()


def size(value: float) -> str:
    """Bytes."""
    return scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def count(value: float) -> str:
    """A number of things: in full up to a million."""
    if value < 1e6:
        return f"{value:,.0f}"
    return scaled(value / 1e6, 1000, ("M", "G", "T"))


def seconds(value: float) -> str:
    """A short time."""
    if value == 0:
        return "0 s"
    return scaled(value, 1000, ("s",)) if value >= 1 else scaled(value * 1e6, 1000, ("us", "ms"))


def duration(value: float) -> str:
    """A long time, in its largest units."""
    if math.isnan(value):
        return "-"
    value = max(0, int(value))
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if value >= size:
            return f"{value // size} {unit} {value % size // part} {smaller}"
    return f"{value // 60} min" if value >= 60 else f"{value} s"


def ago(moment: float) -> str:
    """How long ago an instant (unix seconds) was; 0 stands for never."""
    return "never" if moment == 0 else duration(time.time() - moment)


def percent(part: float, whole: float) -> str:
    """A share."""
    return f"{100 * part / whole:,.1f} %" if whole > 0 and not math.isnan(part) else "-"


def times(all_of_it: float, part: float) -> str:
    """How many times as much something is."""
    return f"{all_of_it / part:.2f} x" if part > 0 and not math.isnan(all_of_it) else "-"


def _counter(label: str, show, look: Look, before: Look | None, name: str, **labels: str) -> Line:
    return label, show(look.total(name, **labels)), "" if before is None else show(rate(look, before, name, **labels))


def _server(look: Look, before: Look | None) -> Iterator[Line]:
    yield "up", duration(time.time() - look.total("process_start_time_seconds")), ""
    yield "keys", count(look.total("kvstore_keys")), ""
    yield "opened in", seconds(look.total("kvstore_recovery_seconds")), ""


def _memory(look: Look, before: Look | None) -> Iterator[Line]:
    index, keys = look.total("kvstore_index_bytes"), look.total("kvstore_keys")
    yield "private", size(look.total("kvstore_private_memory_bytes")), ""
    yield "resident", size(look.total("process_resident_memory_bytes")), ""
    yield "index", size(index), ""
    yield "index per key", size(index / keys) if keys else "-", ""


def _disk(look: Look, before: Look | None) -> Iterator[Line]:
    live, disk = look.total("kvstore_live_bytes"), look.total("kvstore_disk_bytes")
    yield "live", size(live), ""
    yield "dead", size(look.total("kvstore_dead_bytes")), ""
    yield "files", size(disk), ""
    yield "files / live", percent(disk, live), ""
    yield "segments", count(look.total("kvstore_segments")), ""
    yield "free", size(look.total("kvstore_filesystem_free_bytes")), ""


def _durability(look: Look, before: Look | None) -> Iterator[Line]:
    yield _counter("fsyncs", count, look, before, "kvstore_fsync_seconds_count")
    yield "fsync p99", seconds(quantile(look, before, 0.99, "kvstore_fsync_seconds")), ""
    yield "last fsync", ago(look.total("kvstore_last_fsync_timestamp_seconds")), ""
    yield "unsynced", size(look.total("kvstore_unsynced_bytes")), ""
    yield "unsynced for", seconds(look.total("kvstore_unsynced_age_seconds")), ""
    yield "fsync failures", count(look.total("kvstore_fsync_failures_total")), ""
    yield "last backup", ago(look.total("kvstore_last_backup_timestamp_seconds")), ""


def _commands(look: Look) -> dict[str, dict[str, str]]:
    """The labels of the commands that ran, by what to call them: without the front end where there is but one."""
    samples = look.samples.get("kvstore_commands_total", ())
    protocols = {own["protocol"] for own, _ in samples}
    ran = {(own["protocol"], own["command"]): None for own, value in samples if value}
    return {
        command if len(protocols) == 1 else f"{protocol} {command}": {"protocol": protocol, "command": command}
        for protocol, command in ran
    }


def _traffic(look: Look, before: Look | None) -> Iterator[Line]:
    for name, labels in _commands(look).items():
        yield _counter(name, count, look, before, "kvstore_commands_total", **labels)
    for label, outcome in (("misses", "miss"), ("errors", "error")):
        yield _counter(label, count, look, before, "kvstore_commands_total", outcome=outcome)
    yield _counter("received", size, look, before, "kvstore_received_bytes_total")
    yield _counter("sent", size, look, before, "kvstore_sent_bytes_total")


def _latency(look: Look, before: Look | None) -> Iterator[Line]:
    for name, labels in _commands(look).items():
        half, most = (quantile(look, before, q, "kvstore_command_seconds", **labels) for q in (0.5, 0.99))
        yield name, seconds(half), seconds(most)


def _connections(look: Look, before: Look | None) -> Iterator[Line]:
    yield "open", count(look.total("kvstore_connections")), ""
    yield _counter("opened", count, look, before, "kvstore_connections_opened_total")
    yield _counter("refused", count, look, before, "kvstore_connections_refused_total")
    yield _counter("idle, closed", count, look, before, "kvstore_connections_idle_total")


def _compaction(look: Look, before: Look | None) -> Iterator[Line]:
    written = look.total("kvstore_written_bytes_total")
    copied = look.total("kvstore_compaction_written_bytes_total")
    yield "runs", count(look.total("kvstore_compactions_total")), ""
    yield _counter("read", size, look, before, "kvstore_compaction_read_bytes_total")
    yield _counter("copied", size, look, before, "kvstore_compaction_written_bytes_total")
    yield _counter("reclaimed", size, look, before, "kvstore_compaction_reclaimed_bytes_total")
    yield "amplification", times(written + copied, written), ""


def _damage(look: Look, before: Look | None) -> Iterator[Line]:
    yield "at opening", count(look.total("kvstore_recovery_damaged_ranges")), ""
    yield "by the scrub", count(look.total("kvstore_scrub_damaged_ranges")), ""
    yield "damaged reads", count(look.total("kvstore_damaged_reads_total")), ""
    yield "failed work", count(look.total("kvstore_background_failures_total")), ""
    yield "last scrub", ago(look.total("kvstore_last_scrub_timestamp_seconds")), ""


# Title, heads of the two columns, lines.
GROUPS = (
    ("server", "", "", _server),
    ("memory", "", "", _memory),
    ("disk", "", "", _disk),
    ("damage", "", "", _damage),
    ("traffic", "total", "a second", _traffic),
    ("latency", "p50", "p99", _latency),
    ("durability", "", "a second", _durability),
    ("connections", "", "a second", _connections),
    ("compaction", "", "a second", _compaction),
)


def blocks(look: Look, before: Look | None) -> list[list[str]]:
    """The groups, each as lines of BLOCK characters."""
    made = []
    for title, first, second, lines in GROUPS:
        heads = (title, first, second if before is not None or title == "latency" else "")
        rows = list(lines(look, before))
        if rows:
            made.append([_row("", *heads), *(_row("  ", *row) for row in rows)])
    return made


def _row(indent: str, label: str, first: str, second: str) -> str:
    return f"{indent + label:<{2 + LABEL}}{first:>{CELL}} {second:>{CELL}}"


def table(look: Look, before: Look | None, width: int) -> list[str]:
    """The groups side by side, as many as the width in characters holds; rates are those since the look before."""
    most = max(1, (width + GAP) // (BLOCK + GAP))
    columns = _filled(blocks(look, before), most)
    return [(" " * GAP).join(cells).rstrip() for cells in itertools.zip_longest(*columns, fillvalue=" " * BLOCK)]


def _filled(groups: list[list[str]], most: int) -> list[list[str]]:
    """The groups in at most so many columns, in their order, as low as possible."""
    for height in itertools.count(max(map(len, groups))):
        columns: list[list[str]] = [[]]
        for group in groups:
            if columns[-1] and len(columns[-1]) + 1 + len(group) > height:
                columns.append([])
            columns[-1] += ([" " * BLOCK] if columns[-1] else []) + group
        if len(columns) <= most:
            return columns
    raise AssertionError("one column holds them all")
