"""Several results of `kvstore bench --json` as one page: a Markdown table, and plots where matplotlib is installed."""

import itertools
import json
from pathlib import Path

from kvnet.bench.run import PERCENTILES
from kvnet.bench.table import VERSION

COLUMNS = ("run", "what", "operation", "ops/s", *(f"p{percent:g}" for percent in PERCENTILES), "max")
COLORS = {"write": "#c8442f", "read": "#4878a8"}


class ReportError(Exception):
    """A file cannot be used. The message is one line."""


def read(path: str) -> dict:
    """The result that is in a file. ReportError when it holds none."""
    try:
        result = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: {error}") from error
    if not isinstance(result, dict) or not {"version", "plan", "phases", "target"} <= result.keys():
        raise ReportError(f"{path} was not written by kvstore bench --json")
    if result["version"] != VERSION:
        raise ReportError(f"{path} is of version {result['version']}; this kvstore reads version {VERSION}")
    return result


def names_of(paths: list[str]) -> list[str]:
    """What the runs are called: the files' names without their ends, or the whole paths when two would be the same."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else list(paths)


def markdown(runs: dict[str, dict]) -> list[str]:
    """The lines of a table of the results, by name. Latencies in milliseconds."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---" + "|---:" * (len(COLUMNS) - 3) + "|"]
    remarks = []
    for name, result in runs.items():
        what = _plan(result)
        for phase_name, phase in result["phases"].items():
            for operation, figures in phase["operations"].items():
                title = f"load: {operation}" if phase_name == "load" else operation
                lines.append("| " + " | ".join([name, what, title, *_cells(figures)]) + " |")
            remarks += [f"* {name}, {phase_name}: {remark}" for remark in _remarks(phase)]
    return [*lines, "", "Latencies in milliseconds.", *(["", *remarks] if remarks else [])]


def _cells(figures: dict) -> list[str]:
    latencies = [*(figures[f"p{percent:g}_us"] for percent in PERCENTILES), figures["max_us"]]
    return [f"{figures['per_second']:,.0f}", *(f"{us / 1e3:.3f}" for us in latencies)]


def _plan(result: dict) -> str:
    """A run's settings in a few words."""
    plan = result["plan"]
    sizes = plan["mix"] or f"{plan['key_size']} + {plan['value_size']} B"
    words = [result["target"]["protocol"], f"{plan['clients']} clients"]
    if plan["pipeline"] > 1:
        words[-1] += f" x {plan['pipeline']}"
    if plan["threads"] > 1:
        words.append(f"{plan['threads']} threads")
    if plan["rate"]:
        words.append(f"{plan['rate']:,.0f} ops/s asked for")
    words += [f"{plan['read_ratio']:.0%} reads", f"{plan['keys']:,} keys", plan["distribution"], sizes]
    return ", ".join(words)


def _remarks(phase: dict) -> list[str]:
    remarks = ["interrupted"] if phase["interrupted"] else []
    for operation, figures in phase["operations"].items():
        for what in ("misses", "errors", "wrong"):
            if figures[what]:
                remarks.append(f"{operation}: {figures[what]:,} {'wrong values' if what == 'wrong' else what}")
    if phase["unsent"]:
        remarks.append(f"{phase['unsent']:,} commands were due and never sent")
    return remarks


def page(runs: dict[str, dict], plot: str | None) -> str:
    """A page of Markdown. `plot`: the name of the picture beside it, or None."""
    lines = ["# Load generator", "", *markdown(runs), ""]
    if plot:
        lines += [f"![Throughput and latencies of the runs]({plot})", ""]
    return "\n".join(lines)


def draw(runs: dict[str, dict], path: Path) -> bool:
    """Write a plot (SVG); False, and nothing is written, when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kvstore", "font.size": 9})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        3, 1, figsize=(8, 8 + 0.35 * len(runs)), height_ratios=[1 + 0.5 * len(runs), 4, 3], layout="constrained")
    _bars(panels[0], runs)
    _curves(panels[1], runs)
    _course(panels[2], runs)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return True


def _bars(panel, runs: dict[str, dict]) -> None:
    """Operations a second, reads beside writes."""
    left = [0.0] * len(runs)
    for operation, color in COLORS.items():
        widths = [
            result["phases"].get("run", {"operations": {}})["operations"].get(operation, {"per_second": 0})["per_second"]
            for result in runs.values()
        ]
        panel.barh(range(len(runs)), widths, left=left, color=color, label=operation)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        panel.text(total, place, f" {total:,.0f}", va="center", fontsize=8)
    panel.set_yticks(range(len(runs)), list(runs))
    panel.invert_yaxis()
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set_xlabel("operations a second")
    panel.margins(x=0.12)
    panel.legend(fontsize=8, frameon=False)


def _curves(panel, runs: dict[str, dict]) -> None:
    """Latency over the share of commands that were slower."""
    for place, (name, result) in enumerate(runs.items()):
        for operation, figures in result["phases"].get("run", {"operations": {}})["operations"].items():
            slower, xs, ys = figures["count"], [], []
            for us, count in figures["histogram"]:
                xs.append(slower / figures["count"])
                ys.append(us / 1e3)
                slower -= count
            style = "-" if operation == "read" else "--"
            panel.plot(xs, ys, style, color=f"C{place % 10}", label=f"{name}: {operation}")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.invert_xaxis()
    ticks = (0.5, 0.1, 0.01, 0.001, 0.0001)
    panel.set_xticks(ticks, [f"p{100 - 100 * tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("percentile")
    panel.set_ylabel("latency, ms")
    panel.legend(fontsize=7, frameon=False)


def _course(panel, runs: dict[str, dict]) -> None:
    """Operations a second over the time of the run."""
    for place, (name, result) in enumerate(runs.items()):
        series = [(0.0, 0), *result["phases"].get("run", {"series": []})["series"]]
        steps = [(b[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in itertools.pairwise(series)]
        panel.plot([at for at, _ in steps], [rate for _, rate in steps], color=f"C{place % 10}", label=name)
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.set_xlabel("seconds of the run")
    panel.set_ylabel("operations a second")
    panel.legend(fontsize=7, frameon=False)
