"""What the engine is to reach, beside what a run measured.

The goals are for 1,000,000 keys, those for opening also for 10,000,000. Runs of another size are shown, not judged.
"""

from typing import NamedTuple

import report

KEYS = 1_000_000
# Seconds to open: after a clean close, after kill -9.
OPENING = {1_000_000: (0.15, 0.5), 10_000_000: (1.0, 1.5)}


class Verdict(NamedTuple):
    """One goal: what it is about, itself, what was measured, and: met, missed, not judged or not measured."""

    about: str
    goal: str
    measured: str
    word: str


class Goal(NamedTuple):
    """What is to be reached: the value at least (direction 1) or at most (direction -1) the limit, in a unit."""

    about: str
    goal: str
    value: float | None
    direction: int
    limit: float
    unit: str = ""

    def verdict(self, judged):
        if self.value is None:
            return Verdict(self.about, self.goal, "", "not measured")
        word = "met" if self.direction * (self.value - self.limit) >= 0 else "missed"
        return Verdict(self.about, self.goal, report.short(self.value) + self.unit, word if judged else "not judged")


def misses_over_hits(samples):
    """What a get that misses takes, over one that hits."""
    figures = samples.get("kvcore", {})
    both = {"hits": {"us": figures.get("readrandom")}, "misses": {"us": figures.get("readmissing")}}
    return report.ratio(both, "hits", "misses", "us")


def goals(keys, samples):
    """Yield the goals with what was measured."""
    def ours(figure, scale=1.0):
        value = report.median(samples, "kvcore", figure)
        return None if value is None else value * scale

    def times(other, figure):
        return report.ratio(samples, "kvcore", other, figure)

    closed, killed = OPENING.get(keys, OPENING[KEYS])
    yield Goal("speed", "get 2.5x faster than lmdb's in one read transaction", times("lmdb", "readrandom"), 1, 2.5, "x")
    yield Goal("speed", "get 8x faster than rocksdict's", times("rocksdict", "readrandom"), 1, 8, "x")
    yield Goal("speed", "put in the kernel 3x faster than rocksdict's", times("rocksdict", "fillkernel"), 1, 3, "x")
    yield Goal("speed", "buffered put, random order, 2x faster than lmdb's in one transaction",
               times("lmdb", "fillrandom"), 1, 2, "x")
    yield Goal("speed", "the same with keys in order, where lmdb appends", times("lmdb", "fillseq"), 1, 2, "x")
    yield Goal("speed", "a get that misses <= one that hits", misses_over_hits(samples), -1, 1, "x")
    yield Goal("opening", f"after a clean close <= {closed:g} s", ours("reopen_clean"), -1, closed, " s")
    yield Goal("opening", f"after kill -9 in the middle of load <= {killed:g} s", ours("reopen_killed"), -1, killed, " s")
    yield Goal("scan", "all keys in order <= 350 ms", ours("keysall"), -1, 350, " ms")
    yield Goal("scan", "a prefix of 1,000 keys, warm <= 3 ms", ours("prefixscan"), -1, 3, " ms")
    yield Goal("scan", "the same right after 100,000 fresh writes <= 30 ms", ours("prefixfresh"), -1, 30, " ms")
    yield Goal("scale", "index <= 24 bytes per key", ours("index"), -1, 24, " B")
    yield Goal("scale", "longest put while growing <= 10 ms", ours("pause"), -1, 10, " ms")
    yield Goal("disk", "pizzaria before any overwrite <= 103 % of the live bytes", ours("disk_pizzaria", 100), -1, 103, " %")


def verdicts(about, samples):
    """A Verdict for each goal."""
    keys = about["keys"]
    return [goal.verdict(keys == KEYS or (goal.about == "opening" and keys in OPENING)) for goal in goals(keys, samples)]


def text(title, found):
    """Verdicts for a terminal."""
    widths = [max(len(row[i]) for row in found) for i in range(3)]
    lines = [title]
    for row in found:
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row.word]))
    return "\n".join(lines)


def markdown(title, found):
    """Verdicts as lines of Markdown."""
    return report.table(["", title, "measured", ""], [list(row) for row in found], "---")
