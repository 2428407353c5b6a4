"""The figures of a run as text and as a page: one list of tables, two ways to write it."""

import statistics
import sys
from typing import NamedTuple

import adapters
import click


class Figure(NamedTuple):
    """One row: the name in the samples, what it is called, and how its numbers are written (scale, decimals).

    A ratio of two figures is only given when both, as written, are at least `least`.
    """

    name: str
    title: str
    scale: float = 1.0
    decimals: int = 2
    least: float = 0.0


MIB = 1 / (1 << 20)
TABLES = (
    ("Microseconds per operation", (
        Figure("fillseq", "fillseq, buffered"),
        Figure("fillrandom", "fillrandom, buffered"),
        Figure("fillkernel", "fillkernel: random, in the kernel"),
        Figure("overwrite", "overwrite, buffered"),
        Figure("deleterandom", "deleterandom, buffered"),
        Figure("readrandom", "readrandom"),
        Figure("readhot", "readhot 80/20"),
        Figure("readmissing", "readmissing"),
        Figure("pizzaria_fill", "pizzaria: fill, buffered"),
        Figure("pizzaria_read", "pizzaria: read 80/20"),
        Figure("pizzaria_write", "pizzaria: overwrite 80/20, buffered"),
    )),
    ("Scans, milliseconds", (
        Figure("keysfirst", "all keys, first walk after opening", 1, 1),
        Figure("keysall", "all keys, again", 1, 1),
        Figure("prefixscan", "prefixscan: 1,000 keys", 1, 3),
        Figure("prefixread", "prefixread: 1,000 keys and values", 1, 3),
        Figure("prefixfresh", "prefixscan right after fresh writes", 1, 3),
    )),
    ("Memory and disk", (
        Figure("memory_fill", "private memory after a fill in the kernel, MiB", MIB, 1, 1.0),
        Figure("memory_reopen_clean", "private memory after opening and reading, MiB", MIB, 1, 1.0),
        Figure("memory_pizzaria", "pizzaria: private memory after opening and reading, MiB", MIB, 1, 1.0),
        Figure("index", "index, bytes per key", 1, 1),
        Figure("disk_fill", "disk over live bytes after fillrandom"),
        Figure("disk_overwrite", "disk over live bytes after overwrite"),
        Figure("disk_tight", "disk over live bytes when then compacted"),
        Figure("disk_pizzaria", "pizzaria: disk over live bytes after the fill", 1, 3),
    )),
    ("Opening and pauses, milliseconds", (
        Figure("reopen_clean", "opening after a clean close, first read", 1e3, 1),
        Figure("reopen_killed", "opening after kill -9 in the load, first read", 1e3, 1),
        Figure("reopen_bare", "opening with the caches deleted, first read", 1e3, 1),
        Figure("pause", "longest single put of a fill in the kernel", 1, 1),
    )),
)

HOW = """\
Keys have 16 bytes, values 100 random bytes. Rounds go engine by engine; each measurement is a process of its own on a fresh
directory of the same file system, or on a copy of what fillrandom left. Figures are medians of the rounds; the ratios are
medians of the ratios within a round, above 1 where kvcore needs less. The files are in the page cache. All engines get the
same keys in the same order, made beforehand, in loops that call the engine's own methods; garbage collection is off. Every
step compares a sample of what it did.

* **In the kernel**: each put has handed its record to the kernel when it returns. **Buffered**: only after the flush or
  commit at the end, which is in the time.
* **deleterandom** deletes every key. kvcore and dict find out whether the key was there; rocksdict writes blindly.
* **Private memory** is what opening and the work added to RssAnon. The page cache and mapped files are not in it.
* **Disk** is what the files take after a clean close, nothing waited for. Live bytes are keys and values.
* **Fresh writes**: a tenth of the number of keys, half of them new keys, half overwrites, not flushed.
* **pizzaria** has one key for 50 of the others: 70 % up to 1 KiB, 20 % up to 10 KiB, 10 % up to 100 KiB, values of 100 to
  1,000 bytes. LMDB takes keys of at most 511 bytes: there, longer keys are hashed (BLAKE2b, in the time) and stored before
  their value, as a program would have to do it.
"""


def progress(line):
    """Show what is going on, on a terminal only."""
    if sys.stderr.isatty():
        click.echo(line.ljust(60) + "\r", nl=False, err=True)


def median(samples, engine, figure):
    """The median of a figure, or None."""
    values = samples.get(engine, {}).get(figure)
    return statistics.median(values) if values else None


def ratio(samples, engine, other, figure):
    """How many times `other` takes what engine takes, or None: the median of the rounds' ratios."""
    ours, theirs = (samples.get(name, {}).get(figure) for name in (engine, other))
    if not ours or not theirs:
        return None
    ratios = [b / a for a, b in zip(ours, theirs, strict=True) if a > 0]
    return statistics.median(ratios) if ratios else None


def loops(samples):
    """(one argument, two arguments): what the measuring loops cost, us per operation."""
    return tuple(
        statistics.median(value for figures in samples.values() for value in figures.get(name, [0.0]))
        for name in ("loop", "loop_pairs"))


def spread(samples):
    """{engine: median over the us/op figures of (largest - smallest) / median}."""
    found = {}
    for engine, figures in samples.items():
        parts = [(max(v) - min(v)) / statistics.median(v) for f in TABLES[0][1] if (v := figures.get(f.name))]
        found[engine] = statistics.median(parts)
    return found


def number(value, decimals=2):
    return "" if value is None else f"{value:,.{decimals}f}"


def short(value):
    """About three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def times(samples, other, figure):
    """How many times what kvcore takes `other` takes, as text; empty where that says nothing."""
    both = [median(samples, engine, figure.name) for engine in ("kvcore", other)]
    value = ratio(samples, "kvcore", other, figure.name)
    if value is None or min(both) * figure.scale < figure.least:
        return ""
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def tables(samples):
    """Yield (title, header, rows), rows of str, without what no engine has."""
    engines = list(samples)
    others = [name for name in engines if name in ("lmdb", "rocksdict")] if "kvcore" in engines else []
    for title, figures in TABLES:
        rows = []
        for figure in figures:
            values = [median(samples, engine, figure.name) for engine in engines]
            if all(value is None for value in values):
                continue
            row = [figure.title]
            row += [number(None if v is None else v * figure.scale, figure.decimals) for v in values]
            row += [times(samples, other, figure) for other in others]
            rows.append(row)
        yield title, ["", *engines, *(f"{other}/kvcore" for other in others)], rows


def notes(about, samples):
    """Lines that belong under the tables."""
    one, two = loops(samples)
    noise = ", ".join(f"{engine} {share:.0%}" for engine, share in spread(samples).items())
    lines = [f"The empty loop takes {one:.3f} us a read or delete, {two:.3f} us a put; it is included, the same for all."]
    lines.append(f"The load average was {about['load']:.1f} (median): 1 is the run, the rest its threads or other work.")
    if about["rounds"] > 1:
        lines.append(f"From round to round the times differ by (largest - smallest) / median: {noise}.")
    return lines


def text(about, samples):
    """The report for a terminal."""
    lines = [about["machine"], f"{about['keys']:,} keys of 16 bytes, values of 100 bytes; rounds: {about['rounds']}"]
    lines += [f"{name} {version}: {adapters.ENGINES[name].settings}" for name, version in about["versions"].items()]
    for title, header, rows in tables(samples):
        lines += ["", title, *aligned(header, rows)]
    return "\n".join([*lines, "", *notes(about, samples), ""])


def aligned(header, rows):
    """Lines of a table for a terminal: all columns but the first to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return lines


def table(header, rows, align="---:"):
    """Lines of a Markdown table. `align` is that of all columns but the first: to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + f"|{align}" * (len(header) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def markdown(about, samples, plot, judged):
    """The page. `judged` are the lines about the goals."""
    lines = ["# The engine in its own process, beside others", "",
             "Written by `make bench-engine`; change `benchmarks/`, not this page.", ""]
    engines = [[f"{name} {version}", adapters.ENGINES[name].settings] for name, version in about["versions"].items()]
    lines += table(["", ""], [["machine", about["machine"]], ["run", f"`{about['command']}`"], *engines], "---")
    lines.append("")
    if plot:
        lines += ["![Time per operation, private memory and time to open, by engine](benchmarks-engine.svg)", ""]
    for title, header, rows in tables(samples):
        lines += [f"## {title}", "", *table(header, rows), ""]
    lines += ["## Goals", "", *judged, "", "## How it is measured", "", HOW]
    return "\n".join([*lines, *notes(about, samples)]) + "\n"
