"""This server beside redis-server and others, over sockets, in one run. docs/benchmarks.md says how it is measured.

    make bench                                            the full run; writes docs/benchmarks.md and .svg
    python benchmarks/compare.py --quick                  a short one with tiny numbers: shows that everything works
    python benchmarks/compare.py --only tails --only idle --rounds 1 --servers kvstore
    python benchmarks/compare.py --peer 'other=/path/to/other --port {resp} --dir {dir} --appendfsync {fsync}'

servers.py says what the command of a peer may hold.
"""

import itertools
import json
import os
import pathlib
import shlex
import shutil
import signal
import statistics
import tempfile

import click
import figures
import goals
import machine
import plot
import report
import scenarios
import servers

from kvnet.bench.run import BenchError

KNOWN = {"kvstore": servers.kvstore, "redis": servers.redis}


def one_round(number, bed, present, wanted, samples, loads):
    """Measure every server by every scenario; append each figure to samples[column][figure], the machine's load to loads."""
    turn = number % len(present)
    for name in wanted:
        if name in scenarios.ONCE and number:
            continue
        scenario = scenarios.EVERY.get(name) or scenarios.ONCE[name]
        for server in present[turn:] + present[:turn]:
            if not server.keeps(scenarios.FSYNC.get(name, "everysec")):
                continue
            report.progress(f"round {number + 1}: {name} {server.name}")
            loads.append(os.getloadavg()[0])
            for protocol, figure, value in scenario(bed, server):
                column = f"{server.name} {protocol}" if protocol else server.name
                samples.setdefault(column, {}).setdefault(figure, []).append(value)


def installed(names, peers):
    """The servers that can be started; says which cannot."""
    present = []
    for name in names:
        server = KNOWN[name]()
        if server is None:
            click.echo(f"{name} is not installed: skipped")
        else:
            present.append(server)
    return present + list(peers)


def ordered(present, samples):
    """The columns in the order of the servers: those of its protocols, then the server's own."""
    columns = [column for server in present for column in (*(f"{server.name} {p}" for p in server.protocols), server.name)]
    return {column: samples[column] for column in columns if column in samples}


def chosen(context, parameter, text):
    names = text.split(",")
    unknown = set(names) - set(KNOWN)
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: not among {', '.join(KNOWN)}")
    return names


def peers_of(context, parameter, texts):
    try:
        found = [servers.peer(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    names = [*KNOWN, *(server.name for server in found)]
    if len(set(names)) < len(names):
        raise click.BadParameter("two servers have one name")
    return found


def command(rounds, names, peers, only, quick):
    """What repeats this run, without the paths of the peers' programs."""
    words = ["python", "benchmarks/compare.py", "--servers", ",".join(names)]
    words += ["--quick"] if quick else ["--rounds", str(rounds)]
    for server in peers:
        words += ["--peer", f"{server.name}={server.shown}"]
    for name in only:
        words += ["--only", name]
    return shlex.join(words)


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--servers", "names", default=",".join(KNOWN), show_default=True, callback=chosen)
@click.option("--peer", "peers", multiple=True, metavar="NAME=COMMAND", callback=peers_of,
              help="A further server. In the command {text} or {resp} stands for its port, {dir} for its directory, {fsync} "
              "for always, everysec or no. May be repeated.")
@click.option("--only", multiple=True, type=click.Choice(scenarios.NAMES), help="Only these scenarios. May be repeated.")
@click.option("--quick", is_flag=True, help="One round with tiny numbers, to see that everything works.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Every figure of every round goes here.")
@click.option("--docs", is_flag=True, help="Write docs/benchmarks.md and .svg. Not with --quick.")
def main(rounds, names, peers, only, quick, json_path, docs):
    """Measure this server beside others."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)      # no server may outlive this
    rounds = 1 if quick else rounds
    present = installed(names, peers)
    if not present:
        raise click.ClickException("there is no server to measure")
    if os.getloadavg()[0] > 1:
        busy = f"the load average is {os.getloadavg()[0]:.1f} before anything has begun"
        click.echo(f"{busy}: the figures will be noisy", err=True)
    theirs, ours = servers.halves()
    build = servers.ROOT / "build"
    build.mkdir(exist_ok=True)
    root = pathlib.Path(tempfile.mkdtemp(dir=build, prefix="compare-"))
    bed = scenarios.Bed(scenarios.QUICK if quick else scenarios.Sizes(), root, theirs, itertools.count())
    samples, loads = {}, []
    about = machine.describe(root) | {
        "rounds": rounds, "quick": quick, "command": command(rounds, names, peers, only, quick),
        "servers": {server.name: {"version": server.version, "command": server.shown} for server in present}}
    try:
        with servers.placed(ours):
            for number in range(rounds):
                one_round(number, bed, present, only or scenarios.NAMES, samples, loads)
    except (BenchError, servers.ServerError, EOFError, OSError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        shutil.rmtree(root, ignore_errors=True)
        report.progress("")
    about["load"] = statistics.median(loads)
    samples = ordered(present, samples)
    judged = figures.verdicts(about, samples)
    click.echo(figures.text(about, samples))
    click.echo(goals.text("Goals", judged))
    if json_path:
        pathlib.Path(json_path).write_text(json.dumps({"about": about, "samples": samples}, indent=1) + "\n")
    if docs and quick:
        click.echo("a quick run is not written to docs/")
    elif docs:
        page = servers.ROOT / "docs" / "benchmarks.md"
        drawn = plot.draw("Values of 256 bytes, 50 clients", figures.PANELS, samples, page.with_suffix(".svg"))
        picture = f"{page.stem}.svg" if drawn else None
        page.write_text(figures.markdown(about, samples, picture, goals.markdown("goal", judged)))
        click.echo(f"written: docs/{page.name}" + (f", docs/{picture}" if drawn else ""))


if __name__ == "__main__":
    main()
