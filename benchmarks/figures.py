"""What compare.py measured, in words: the tables, the goals, and the page."""

import statistics

import plot
import report
import scenarios
from goals import Goal
from report import Figure

OURS = "kvstore"
MORE, LESS = 1, -1              # which is better
KB, MB = 1e-3, 1e-6
TABLES = (
    ("Commands a second, thousands; values of 256 bytes, 50 clients", MORE, (
        Figure("write", "write, everysec", KB, 1),
        Figure("read", "read", KB, 1),
        Figure("mix", "80 % reads, keys 80/20", KB, 1),
        Figure("write_32", "write, pipeline 32", KB, 1),
        Figure("read_32", "read, pipeline 32", KB, 1),
        Figure("mix_32", "80 % reads, keys 80/20, pipeline 32", KB, 1),
        Figure("mix_1", "80 % reads, keys 80/20, 1 client", KB, 1),
        Figure("mix_200", "80 % reads, keys 80/20, 200 clients", KB, 1),
        Figure("always", "write, always", KB, 1),
        Figure("always_free", "write, always, all processors for both", KB, 1),
        Figure("always_1", "write, always, 1 client", KB, 1),
        Figure("always_200", "write, always, 200 clients", KB, 1),
        Figure("always_32", "write, always, pipeline 32", KB, 1),
        Figure("no", "write, no", KB, 1),
        Figure("no_32", "write, no, pipeline 32", KB, 1),
    )),
    ("Commands a second, thousands; other sizes, everysec, 50 clients", MORE, (
        Figure("write_10k", "write, 10 KiB", KB, 2),
        Figure("read_10k", "read, 10 KiB", KB, 2),
        Figure("write_100k", "write, 100 KiB", KB, 2),
        Figure("read_100k", "read, 100 KiB", KB, 2),
        Figure("pizzaria", "pizzaria: 70 % reads, keys 80/20", KB, 2),
    )),
    ("Commands a second, thousands, by redis-benchmark; 50 clients, 256 bytes, everysec", MORE, (
        Figure("tool_set_1", "SET", KB, 1),
        Figure("tool_get_1", "GET", KB, 1),
        Figure("tool_set_32", "SET, pipeline 32", KB, 1),
        Figure("tool_get_32", "GET, pipeline 32", KB, 1),
    )),
    ("99 % are answered within, microseconds", LESS, (
        Figure("write_p99", "write, everysec", 1, 0),
        Figure("read_p99", "read", 1, 0),
        Figure("mix_p99", "reads, with 20 % writes", 1, 0),
        Figure("mix_1_p99", "reads, with 20 % writes, 1 client", 1, 0),
        Figure("mix_200_p99", "reads, with 20 % writes, 200 clients", 1, 0),
        Figure("always_p99", "write, always", 1, 0),
        Figure("always_free_p99", "write, always, all processors for both", 1, 0),
        Figure("always_1_p99", "write, always, 1 client", 1, 0),
        Figure("always_200_p99", "write, always, 200 clients", 1, 0),
        Figure("write_100k_p99", "write, 100 KiB", 1, 0),
        Figure("read_100k_p99", "read, 100 KiB", 1, 0),
        Figure("pizzaria_p99", "pizzaria: reads, with 30 % writes", 1, 0),
    )),
    ("Lists of 1,000,000 keys, milliseconds", LESS, (
        Figure("keys", "all keys", 1e3, 1),
        Figure("reads", "a prefix of 1,000 keys", 1e3, 2),
    )),
    ("Memory, disk and starting", LESS, (
        Figure("memory", "private memory with 1,000,000 values of 100 bytes, MB", MB, 1),
        Figure("idle", "private memory for each of 10,000 idle connections, KB", KB, 2),
        Figure("start", "first read after starting empty, ms", 1e3, 0),
        Figure("ready_killed", "1,000,000 keys: later than that after kill -9, ms", 1e3, 0),
        Figure("ready_stopped", "1,000,000 keys: later than that after a stop, ms", 1e3, 0),
        Figure("disk_loaded", "pizzaria: disk over live bytes, loaded and stopped", 1, 3),
        Figure("disk_overwritten", "pizzaria: disk over live bytes, overwritten 5 times", 1, 3),
    )),
    ("A reader at a fixed rate: 99 % are answered within, microseconds", LESS, (
        Figure("tail_quiet", "alone", 1, 0),
        Figure("tail_scan", "while a client lists all keys", 1, 0),
        Figure("tail_deaf", "while a client never reads the lists it asked for", 1, 0),
        Figure("tail_drip", "while a client sends a byte a second", 1, 0),
        Figure("tail_overwrite", "while keys are overwritten and space is reclaimed", 1, 0),
        Figure("tail_all", "all of these together", 1, 0),
    )),
    ("Lists of 200,000 keys a second that the client got meanwhile", MORE, (
        Figure("lists_scan", "alone with the reader", 1, 1),
        Figure("lists_all", "with all of the others", 1, 1),
    )),
)

PANELS = (
    plot.Panel("thousand commands a second: longer is better", [
        (figure.name, figure.title, figure.scale) for figure in TABLES[0][2]
        if figure.name in ("write", "read", "mix", "write_32", "read_32", "mix_32", "always")]),
    plot.Panel("1,000,000 keys: private memory, MB", [("memory", "after loading", MB)]),
    plot.Panel("1,000,000 keys: ready, ms", [("ready_killed", "after kill -9", 1e3),
                                                 ("ready_stopped", "after a stop", 1e3)]),
)
HOW = """\
Servers are started one after another, by the commands above, each on free ports and a fresh directory of the same file
system. Each round measures everything of every server, the order of the servers turns from round to round, and figures are
medians of the rounds. Ratios are medians of the ratios within a round and above 1 where kvstore is better.

The servers run on one half of the processors and the load generator on the other. `kvstore bench` drives all of them
through the same code ([bench.md](bench.md)), in the protocol that stands in the column, from one thread. It compares every
value that is read; a wrong one, an error or a missing value ends the run without a page. One row of the first table, by
hand:

    kvstore bench --protocol PROTOCOL --port PORT --clients 50 --pipeline 1 --keys 100000 --value-size 256 \\
        --distribution 80-20 --read-ratio 0.8 --duration 1.5 --load

* **Durability**: `--fsync always`, `everysec` and `no` stand beside `appendfsync` of the same name. A peer whose command
  cannot be told so is only measured beside everysec.
* **Processors**: servers have one half of them, the load generator the other. In one row both may use all, as where
  nobody binds them.
* **Time**: a measurement takes 1.5 s, with always 6 s. Logs are rewritten meanwhile, by redis-server every two or three
  seconds with always: in less time some measurements would have one in them and others none.
* **redis-benchmark**: `redis-benchmark --csv -t set,get -c 50 -P 1 -d 256 -r 100000 -n 60000`; with -P 32, -n 960000. Only
  for servers that speak the protocol of Redis.
* **Lists** are taken from a second request on one connection, to the last byte of the reply. In the text protocol they are
  `keys` and `reads`, which answers the values; in that of Redis `KEYS *` and `KEYS prefix*`, which leaves the values to be
  fetched.
* **Private memory** is RssAnon. Mapped files and the page cache are not in it, nor what the kernel keeps for a connection.
  Each of the idle connections has read one value.
* **Starting**: from the start of the process to the answer of a read, with its right value. What a start with an empty
  directory takes in the same round (the shorter of two) is the interpreter and its modules; it is subtracted. kill -9 comes
  right after the keys were written and listed; all of them are then read, to see that none is missing.
* **Disk** is what the files take; live bytes are keys and values. Loaded: after a stop. Overwritten: five times as many
  random overwrites as there are keys, then 30 s of rest; the server runs.
* **The reader** sends 2,000 reads a second on 20 connections, and latencies count from the moment a read was due. Clients
  that list 200,000 keys and that overwrite only have the processor time that the reader leaves. There are 4,000 overwrites a
  second, and this server has segments of 2 MiB then, so that compaction never rests.
* **Disk and idle connections** are measured in the first round only: they hardly differ from round to round.
"""


def number(value, figure):
    return report.number(None if value is None else value * figure.scale, figure.decimals)


def better(samples, ours, other, figure, direction):
    """How many times better ours is than the other, or None."""
    if direction == MORE:
        return report.ratio(samples, other, ours, figure)
    return report.ratio(samples, ours, other, figure)


def is_ours(column):
    return column.split()[0] == OURS


def tables(samples):
    """Yield (title, header, rows), rows of str, without the columns and rows that nobody measured."""
    for title, direction, figures in TABLES:
        figures = [figure for figure in figures if any(figure.name in found for found in samples.values())]
        columns = [column for column, found in samples.items() if any(figure.name in found for figure in figures)]
        if not columns:
            continue
        pairs = [(ours, other) for ours in columns if is_ours(ours) for other in columns if not is_ours(other)]
        rows = []
        for figure in figures:
            row = [figure.title, *(number(report.median(samples, column, figure.name), figure) for column in columns)]
            for ours, other in pairs:
                times = better(samples, ours, other, figure.name, direction)
                row.append("" if times is None else f"{times:.2f}")
            rows.append(row)
        yield title, ["", *columns, *(f"{ours} to {other}" for ours, other in pairs)], rows


def goals(samples):
    """Yield the Goals with what was measured."""
    def times(protocol, figure, other="redis resp"):
        return report.ratio(samples, other, f"{OURS} {protocol}", figure)

    def ours(figure, scale=1.0, column=OURS):
        value = report.median(samples, column, figure)
        return None if value is None else value * scale

    for what, tool in (("kvstore bench", ("write", "read", "write_32", "read_32")),
                       ("redis-benchmark", ("tool_set_1", "tool_get_1", "tool_set_32", "tool_get_32"))):
        for name, figure, limit in zip(("SET", "GET", "SET, pipeline 32", "GET, pipeline 32"), tool,
                                       (1.15, 1.15, 1.5, 1.5), strict=True):
            yield Goal("resp", f"{name}: {limit}x redis ({what})", times("resp", figure), 1, limit, "x")
    for protocol in ("resp", "text"):
        for name, where in (("always", "half of the processors"), ("always_free", "all processors")):
            yield Goal(protocol, f"writes with always, {where}: 1.5x redis", times(protocol, name), 1, 1.5, "x")
    for column in samples:
        for peer, limit in (("escabelo", 2), ("pizzakv", 1.3)):
            if column.startswith(f"{peer} "):
                yield Goal("text", f"80/20 mix: {limit}x {column}", times("text", "mix", column), 1, limit, "x")
    for protocol in ("text", "resp"):
        yield Goal(protocol, "200 busy clients: 0.97x the commands a second of 50", busy(samples, f"{OURS} {protocol}"),
                   1, 0.97, "x")
    yield Goal("memory", "1,000,000 keys, values of 100 bytes: <= 75 MB", ours("memory", MB), -1, 75, " MB")
    yield Goal("memory", "an idle connection: <= 20 KB", ours("idle", KB), -1, 20, " KB")
    yield Goal("start", "ready after kill -9: <= 600 ms", ours("ready_killed", 1e3), -1, 600, " ms")
    yield Goal("start", "ready after a stop: <= 300 ms", ours("ready_stopped", 1e3), -1, 300, " ms")
    yield Goal("lists", "all keys: <= 350 ms", ours("keys", 1e3, f"{OURS} text"), -1, 350, " ms")
    yield Goal("lists", "values of a prefix of 1,000: <= 5 ms", ours("reads", 1e3, f"{OURS} text"), -1, 5, " ms")
    for kind, title in (("scan", "a list of all keys"), ("deaf", "a client that never reads"),
                        ("drip", "a client of a byte a second"), ("overwrite", "overwrites and compaction"),
                        ("all", "all of these")):
        yield Goal("tails", f"p99 of reads beside {title}: <= 2x quiet", ours(f"tail_{kind}_times"), -1, 2, "x")
    yield Goal("disk", "pizzaria, loaded: <= 103 % of the live bytes", ours("disk_loaded", 100), -1, 103, " %")
    yield Goal("disk", "pizzaria, overwritten 5 times: <= 115 %", ours("disk_overwritten", 100), -1, 115, " %")


def busy(samples, column):
    """What 200 clients get in the time in which 50 get 1, or None."""
    found = samples.get(column, {})
    return report.ratio({"50": {"rate": found.get("mix")}, "200": {"rate": found.get("mix_200")}}, "50", "200", "rate")


def verdicts(about, samples):
    """A goals.Verdict for each goal. A quick run is not judged."""
    return [goal.verdict(not about["quick"]) for goal in goals(samples)]


def spread(samples):
    """{column: median over the throughputs of (largest - smallest) / median}."""
    found = {}
    for column, figures in samples.items():
        parts = [(max(v) - min(v)) / statistics.median(v) for f in TABLES[0][2] if (v := figures.get(f.name))]
        if parts:
            found[column] = statistics.median(parts)
    return found


def notes(about, samples):
    """Lines that belong under the tables."""
    lines = [f"The load average was {about['load']:.1f} (median): a server and the load generator make up to 2, the rest is "
             "other work."]
    noise = ", ".join(f"{column} {share:.0%}" for column, share in spread(samples).items())
    if noise and about["rounds"] > 1:
        lines.append(f"From round to round the throughputs differ by (largest - smallest) / median: {noise}.")
    return lines


def settings(about):
    """Rows of what was run, and how."""
    rows = [["machine", about["machine"]], ["run", f"`{about['command']}`"], ["rounds", str(about["rounds"])]]
    for name, server in about["servers"].items():
        rows.append([f"{name} {server['version']}".strip(), f"`{server['command']}`"])
    return rows


def text(about, samples):
    """The report for a terminal."""
    lines = [": ".join(row) for row in settings(about)]
    for title, header, rows in tables(samples):
        lines += ["", title, *report.aligned(header, rows)]
    return "\n".join([*lines, "", *notes(about, samples), ""])


def markdown(about, samples, picture, judged):
    """The page. `picture`: the file name of the plot, or None; `judged` are the lines about the goals."""
    lines = ["# The server, beside others", "", "Written by `make bench`; change `benchmarks/`, not this page.", ""]
    lines += [*report.table(["", ""], settings(about), "---"), ""]
    if about["quick"]:
        lines += ["**A quick run: its figures mean nothing.**", ""]
    if picture:
        lines += [f"![Commands a second, memory and starting, by server]({picture})", ""]
    for title, header, rows in tables(samples):
        lines += [f"## {title}", "", *report.table(header, rows), ""]
    lines += ["## Goals", "", *judged, "", "## How it is measured", "", HOW]
    return "\n".join([*lines, *notes(about, samples)]) + "\n"


# A figure without a title would be measured and never shown.
SHOWN = {figure.name for _, _, figures in TABLES for figure in figures}
assert {case.name for case in (*scenarios.EVERYSEC, *scenarios.ALWAYS, *scenarios.NEVER)} <= SHOWN
