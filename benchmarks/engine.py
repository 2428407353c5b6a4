"""kvcore against py-lmdb, rocksdict and dict, in process, in one run. docs/benchmarks-engine.md says how it is measured.

    make bench-engine                                     the full run; writes docs/benchmarks-engine.md and .svg
    python benchmarks/engine.py --quick                   about 20 s, prints only
    python benchmarks/engine.py --keys N --rounds N --engines kvcore,lmdb --json FILE

Each round runs every step once per engine, in turn; every step is a process of its own (child.py) on a fresh directory under
build/, or on a copy of what fillrandom left.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import adapters
import child
import click
import goals
import machine
import plot
import report

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHILD = pathlib.Path(__file__).with_name("child.py")
QUICK_KEYS = 80_000
GOALS = "goal, for 1,000,000 keys"
PANELS = (
    plot.Panel("us per operation (log)",
               [(f.name, f.title.split(",")[0].split(":")[0], f.scale) for f in report.TABLES[0][1][:8]]
               + [("pizzaria_read", "pizzaria read", 1.0)], "log"),
    plot.Panel("private memory, MiB",
               [("memory_fill", "after a fill", report.MIB), ("memory_reopen_clean", "after opening", report.MIB)]),
    plot.Panel("opening, ms", [("reopen_clean", "after a close", 1e3), ("reopen_killed", "after kill -9", 1e3)]),
)

# A step and what it works on: an empty directory (keep: the others use it), the kept one, or a copy of that.
FRESH, KEEP, KEPT, COPY, BARE, KILLED = "fresh", "keep", "kept", "copy", "bare", "killed"
STEPS = (
    ("fillseq", FRESH),
    ("fillrandom", KEEP),
    ("fillkernel", FRESH),
    ("growth", FRESH),
    ("reopen_clean", KEPT),
    ("reopen_bare", BARE),
    ("reopen_killed", KILLED),
    ("readrandom", KEPT),
    ("readhot", KEPT),
    ("readmissing", KEPT),
    ("scan", COPY),
    ("overwrite", COPY),
    ("deleterandom", COPY),
    ("pizzaria", FRESH),
)


def command(spec):
    return [sys.executable, str(CHILD), json.dumps(spec)]


def measured(spec):
    """The result (dict) of one step, run in a child."""
    done = subprocess.run(command(spec), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise click.ClickException(f"{spec['engine']}: {spec['step']} failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def killed(spec):
    """Load into spec's directory and kill -9 the process in the middle of writing, after `keys` keys."""
    with subprocess.Popen(command(spec | {"step": "load"}), stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout.readline().strip() != "loaded":
                raise click.ClickException(f"{spec['engine']}: load failed")
        finally:
            process.kill()


def run_step(step, place, spec, kept, scratch):
    """One step with its directory prepared and, unless it is kept, taken away again."""
    if place in (KEEP, KEPT):
        return measured(spec | {"directory": str(kept)})
    try:
        if place in (COPY, BARE) and kept.exists():
            shutil.copytree(kept, scratch)
        if place == BARE:
            for pattern in adapters.ENGINES[spec["engine"]].caches:
                for path in scratch.glob(pattern):
                    path.unlink()
        if place == KILLED:
            killed(spec | {"directory": str(scratch)})
        return measured(spec | {"directory": str(scratch)})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def applies(place, adapter):
    """Whether a step makes sense for an engine: what keeps nothing is not opened again, what has no caches not bared."""
    if place == BARE:
        return bool(adapter.caches)
    return adapter.persistent or place != KILLED


def one_round(number, names, keys, root, samples, loads):
    """Run every step for every engine, append each figure to samples[engine][figure], the machine's load to loads."""
    turn = number % len(names)
    names = names[turn:] + names[:turn]
    for step, place in STEPS:
        loads.append(os.getloadavg()[0])
        for name in names:
            adapter = adapters.ENGINES[name]
            if not applies(place, adapter) or (step == "reopen_clean" and not adapter.persistent):
                continue
            report.progress(f"round {number + 1}: {step} {name}")
            spec = {"step": step, "engine": name, "keys": keys, "seed": 1000 * (number + 1)}
            for figure, value in run_step(step, place, spec, root / f"kept-{name}", root / "scratch").items():
                samples[name].setdefault(figure, []).append(value)
    for name in names:
        shutil.rmtree(root / f"kept-{name}", ignore_errors=True)


def installed(wanted):
    """{name: version} of the engines asked for; says which are missing."""
    versions = {}
    for name in wanted:
        version = adapters.ENGINES[name].version()
        if version is None:
            click.echo(f"{name} is not installed (pip install -e '.[bench]'): skipped")
        else:
            versions[name] = version
    return versions


def chosen(context, parameter, text):
    names = text.split(",")
    unknown = set(names) - set(adapters.ENGINES)
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: not among {', '.join(adapters.ENGINES)}")
    return names


@click.command()
@click.option("--keys", default=1_000_000, show_default=True, type=click.IntRange(1000), help="Keys of 16 bytes.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--engines", default=",".join(adapters.ENGINES), show_default=True, callback=chosen)
@click.option("--quick", is_flag=True, help=f"One round of {QUICK_KEYS:,} keys.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Every figure of every round goes here.")
@click.option("--docs", is_flag=True, help="Write docs/benchmarks-engine.md and .svg. Not with --quick.")
def main(keys, rounds, engines, quick, json_path, docs):
    """Measure kvcore beside other embedded stores."""
    if quick:
        keys, rounds = QUICK_KEYS, 1
    versions = installed(engines)
    (ROOT / "build").mkdir(exist_ok=True)
    root = pathlib.Path(tempfile.mkdtemp(dir=ROOT / "build", prefix="bench-"))
    samples = {name: {} for name in versions}
    loads = []
    about = machine.describe(root) | {"keys": keys, "rounds": rounds, "versions": versions}
    about["command"] = f"make bench-engine ARGS='--keys {keys} --rounds {rounds} --engines {','.join(engines)}'"
    try:
        for number in range(rounds):
            one_round(number, list(versions), keys, root, samples, loads)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    report.progress("")
    about["load"] = statistics.median(loads)
    click.echo(report.text(about, samples))
    judged = goals.verdicts(about, samples)
    click.echo(goals.text(GOALS, judged))
    if json_path:
        pathlib.Path(json_path).write_text(json.dumps({"about": about, "samples": samples}, indent=1) + "\n")
    if docs and quick:
        click.echo("a quick run is not written to docs/")
    elif docs:
        page = ROOT / "docs" / "benchmarks-engine.md"
        title = f"{keys:,} keys of 16 bytes, values of 100 bytes: shorter is better"
        drawn = plot.draw(title, PANELS, samples, page.with_suffix(".svg"))
        page.write_text(report.markdown(about, samples, drawn, goals.markdown(GOALS, judged)))
        click.echo(f"written: docs/{page.name}" + (f", docs/{page.stem}.svg" if drawn else ""))


assert {step for step, _ in STEPS} <= set(child.STEPS)

if __name__ == "__main__":
    main()
