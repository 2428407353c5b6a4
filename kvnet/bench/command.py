"""`kvstore bench`: the command line of the load generator. What it needs is imported when it runs."""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import click
from click.core import ParameterSource

from kvnet.bench.mix import MIXES, fixed

PORTS = {"text": "8080", "resp": "6379"}
INTERRUPTED = 130
BIGGEST_VALUE = 64 << 20


def _fail(message: str) -> None:
    click.echo(f"kvstore: {message}", err=True)
    sys.exit(1)


def _address(context: click.Context, host: str | None, port: int | None, protocol: str) -> tuple[str, int]:
    """Those given here, or with `kvstore`, or in the environment; else the protocol's own port."""
    root = context.find_root()
    host = host or context.obj["host"]
    if port is not None:
        return host, port
    text = context.obj["port"]
    if root.get_parameter_source("port") is ParameterSource.DEFAULT:
        text = PORTS[protocol]
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 65535):
        raise click.UsageError(f"--port or KVSTORE_PORT: {text!r} is not a port")
    return host, int(text)


class _Progress:
    """A line on the terminal that is rewritten; nothing when standard error is none."""

    def __init__(self):
        self._shown = sys.stderr.isatty()
        self._last = (None, 0.0, 0)

    def __call__(self, phase, seconds: float, answered: int) -> None:
        """Show the commands answered after so many seconds of a phase, and those of the time since the last call."""
        if not self._shown:
            return
        last, then, before = self._last
        if last is not phase:
            then, before = 0.0, 0
        rate = (answered - before) / (seconds - then) if seconds > then else 0
        click.echo(f"\r{phase.name}: {seconds:5.1f} s  {answered:,} done  {rate:,.0f} ops/s\x1b[K", err=True, nl=False)
        self._last = (phase, seconds, answered)

    def clear(self) -> None:
        """Wipe the line."""
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)


@click.group(invoke_without_command=True, short_help="Measure a server: throughput, latencies, right values.")
@click.option("--host", help="As in kvstore --help.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its port. [default: 8080; with --protocol resp 6379]")
@click.option("--protocol", type=click.Choice(["text", "resp"]), default="text", show_default=True,
              help="What the server speaks: kvstore's text protocol, or that of Redis.")
@click.option("--clients", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Connections.")
@click.option("--pipeline", type=click.IntRange(1, 100_000), default=1, show_default=True,
              help="Commands under way at a time on each connection.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True,
              help="Threads that share the connections.")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True, max=1e6),
              help="Seconds to run. [default: 10]")
@click.option("--requests", type=click.IntRange(min=1), help="Run for so many commands, not for a time.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True, max=1e8),
              help="Send so many commands a second, in even intervals, however fast the server answers. Latencies run from "
              "the moment a command was due.")
@click.option("--read-ratio", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="How many of the commands are reads: 0 to 1.")
@click.option("--keys", type=click.IntRange(1, 4_000_000_000), default=100_000, show_default=True,
              help="Different keys.")
@click.option("--key-size", type=click.IntRange(1, 102_400), default=16, show_default=True, help="Bytes of a key.")
@click.option("--value-size", type=click.IntRange(0, BIGGEST_VALUE), default=256, show_default=True,
              help="Bytes of a value.")
@click.option("--mix", type=click.Choice(list(MIXES)),
              help="Sizes by a mix, not one for all. pizzaria: keys of 8 bytes to 100 KiB, values of 100 to 1,000 bytes.")
@click.option("--distribution", type=click.Choice(["uniform", "80-20", "zipf"]), default="uniform", show_default=True,
              help="Which keys are asked for: all equally often; a fifth of them in 80 % of the commands; zipf with the "
              "constant 0.99.")
@click.option("--load", is_flag=True, help="First write every key once.")
@click.option("--seed", type=click.IntRange(0, 2**40), default=1, show_default=True,
              help="Of the random choices: the same seed, the same commands.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def bench(context, host, port, as_json, **options) -> None:
    """Load a server with reads and writes and tell how fast it answers.

    Every value that is read is compared with what was written. In the text protocol, a read that answers "error" counts as
    a miss. Ctrl-C ends a run and prints the results up to then.

    The exit status is 1 when the server cannot be reached, a command was answered with an error, a wrong value came, or
    after --load a key was missing; 2 when the command line is wrong; 130 after Ctrl-C.
    """
    if context.invoked_subcommand:
        for name in context.params:
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"the options of {context.invoked_subcommand} stand behind its name")
        return
    for one, other in (("duration", "requests"), *(("mix", size) for size in ("key_size", "value_size"))):
        given = [context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in (one, other)]
        if all(given):
            names = [name.replace("_", "-") for name in (one, other)]
            raise click.UsageError(f"--{names[0]} and --{names[1]} exclude each other")
    if options["threads"] > options["clients"]:
        raise click.UsageError("--threads share the clients: there cannot be more of them")
    if options["mix"]:
        options["key_size"] = options["value_size"] = None
    _run(_address(context, host, port, options["protocol"]), options, as_json)


def _run(address: tuple[str, int], options: dict, as_json: bool) -> None:
    from kvnet.bench import run, table
    from kvnet.bench.workload import Workload

    names = ("clients", "pipeline", "threads", "duration", "requests", "rate", "read_ratio", "seed")
    duration = options["duration"] or (None if options["requests"] else 10.0)
    plan = run.Plan(**{**{name: options[name] for name in names}, "duration": duration})
    target = run.Target(*address, options["protocol"])
    mix = MIXES[options["mix"]] if options["mix"] else fixed(options["key_size"], options["value_size"])
    try:
        workload = Workload(options["keys"], mix, options["distribution"])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    progress = _Progress()
    phases = []
    try:
        sockets = run.connect(target, plan.clients)
        try:
            if options["load"]:
                writing = dataclasses.replace(plan, read_ratio=0.0)
                phases.append(run.sweep("load", target, sockets, writing, workload, progress))
            if not (phases and phases[0].interrupted):
                phases.append(run.measure(target, sockets, plan, workload, progress))
        finally:
            progress.clear()
            run.disconnect(sockets)
    except run.BenchError as error:
        _fail(str(error))
    kept = ("keys", "key_size", "value_size", "mix", "distribution", "load")
    result = table.as_dict(target, plan, {name: options[name] for name in kept}, phases)
    result["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    click.echo(json.dumps(result) if as_json else "\n".join(table.lines(result)))
    sys.exit(_status(phases, options["load"]))


def _status(phases: list, loaded: bool) -> int:
    if any(phase.wrong or phase.errors or (loaded and phase.tallies[1].misses) for phase in phases):
        return 1
    return INTERRUPTED if any(phase.interrupted for phase in phases) else 0


@bench.command(short_help="Make one table of several results, and plots.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--output", metavar="PAGE.md", type=click.Path(dir_okay=False, path_type=Path),
              help="Write a page there, and beside it the plots, PAGE.svg; for those matplotlib must be installed.")
def report(files: tuple[str, ...], output: Path | None) -> None:
    """Make one Markdown table of the results in several FILEs, each written by kvstore bench --json.

    The runs are called as the files.
    """
    from kvnet.bench import report

    try:
        runs = {name: report.read(path) for name, path in zip(report.names_of(list(files)), files, strict=True)}
    except report.ReportError as error:
        _fail(str(error))
    if output is None:
        click.echo("\n".join(report.markdown(runs)))
        return
    plot = output.with_suffix(".svg")
    try:
        drawn = report.draw(runs, plot)
        output.write_text(report.page(runs, plot.name if drawn else None), "utf-8")
    except OSError as error:
        _fail(f"cannot write {error.filename or output}: {error.strerror}")
    if not drawn:
        click.echo(f"kvstore: {output} has no plots: matplotlib is not installed (pip install matplotlib)", err=True)


@bench.command(short_help="The challenge's figures: speed, recovery, disk, durability.")
@click.option("--entries", type=click.IntRange(100, 100_000_000), default=100_000, show_default=True,
              help="Keys; 100,000 take about 0.8 GB of disk, 1,000,000 about 8 GB.")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True, max=1e6), default=10.0, show_default=True,
              help="Seconds of mixed load.")
@click.option("--clients", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Connections.")
@click.option("--fsync", type=click.Choice(["always", "everysec", "no"]), default="everysec", show_default=True,
              help="As in kvstore serve --help.")
@click.option("--data-dir", metavar="PATH", type=click.Path(file_okay=False),
              help="Where the data is kept, empty or not there yet; it is left there. [default: a temporary directory]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def challenge(entries, duration, clients, fsync, data_dir, as_json) -> None:
    """Measure what the challenge asks for on a server that is started for this alone.

    It is loaded with the pizzaria mix, serves 70 % reads and 30 % writes of which 80 % go to a fifth of the keys, is killed
    with kill -9 in the middle of writes, started again, read back to the last key, stopped, and compacted.

    The exit status is 1 when a step fails or an answer is not right.
    """
    from kvnet.bench import run
    from kvnet.bench.challenge import Challenge, ChallengeError, lines

    progress = _Progress()
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as temporary:
        directory = data_dir or os.path.join(temporary, "data")
        if os.path.isdir(directory) and os.listdir(directory):
            raise click.UsageError(f"--data-dir: {directory} is not empty")
        try:
            result = Challenge(directory, entries, run.Plan(clients, duration=duration), fsync, progress).result()
        except (ChallengeError, run.BenchError) as error:
            progress.clear()
            _fail(str(error))
        except KeyboardInterrupt:
            progress.clear()
            click.echo("kvstore: interrupted", err=True)
            sys.exit(INTERRUPTED)
    progress.clear()
    click.echo(json.dumps(result) if as_json else "\n".join(lines(result)))
