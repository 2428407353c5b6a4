"""The result of a run in words: a table for a terminal, a dict for JSON."""

import kvcore
from kvnet.bench.run import PERCENTILES, Phase, Plan, Target

VERSION = 1  # of the form of the JSON
HEADER = ("", "operations", "ops/s", "mean", *(f"p{percent:g}" for percent in PERCENTILES), "max")


def as_dict(target: Target, plan: Plan, workload: dict, phases: list[Phase]) -> dict:
    """For JSON. `workload`: how keys and values were chosen."""
    return {
        "version": VERSION,
        "kvstore": kvcore.__version__,
        "target": {"host": target.host, "port": target.port, "protocol": target.protocol},
        "plan": {**vars(plan), **workload},
        "phases": {phase.name: phase.as_dict() for phase in phases},
    }


def lines(result: dict) -> list[str]:
    """The table of a dict made by as_dict()."""
    rows = [list(HEADER)]
    for name, phase in result["phases"].items():
        for operation, figures in phase["operations"].items():
            rows.append([f"load: {operation}" if name == "load" else operation, *_cells(figures)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    text = ["latencies in milliseconds"]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        text.append("  ".join([row[0].ljust(widths[0]), *cells]))
    for name, phase in result["phases"].items():
        text += _notes(name, phase, result["plan"])
    return text


def _cells(figures: dict) -> list[str]:
    latencies = [figures["mean_us"], *(figures[f"p{percent:g}_us"] for percent in PERCENTILES), figures["max_us"]]
    return [f"{figures['count']:,}", f"{figures['per_second']:,.0f}", *(f"{us / 1e3:.3f}" for us in latencies)]


def _notes(name: str, phase: dict, plan: dict) -> list[str]:
    mib = 1 << 20
    seconds = phase["seconds"]
    notes = [
        f"{name}: {phase['per_second']:,.0f} ops/s in {seconds:.2f} s; sent {phase['sent_bytes'] / mib:,.1f} MiB, "
        f"received {phase['received_bytes'] / mib:,.1f} MiB"
        + (f", {(phase['sent_bytes'] + phase['received_bytes']) / mib / seconds:,.1f} MiB/s" if seconds else "")
    ]
    if phase["interrupted"]:
        notes.append(f"{name}: interrupted; these are the results up to then")
    reads = phase["operations"].get("read")
    if reads and reads["misses"]:
        share = reads["misses"] / reads["count"]
        hint = "keys were lost" if plan["load"] else "--load writes every key before"
        notes.append(f"{name}: {reads['misses']:,} reads ({share:.1%}) found no value: {hint}")
    for what, kind in (("errors", "commands were answered with an error"), ("wrong", "reads gave a wrong value")):
        count = sum(figures[what] for figures in phase["operations"].values())
        if count:
            notes.append(f"{name}: {count:,} {kind}")
    if phase["unsent"]:
        notes.append(
            f"{name}: {phase['unsent']:,} commands were due and never sent: that rate is too high for this server or for "
            "so few clients"
        )
    return notes + [f"  {remark}" for remark in phase["remarks"]]
