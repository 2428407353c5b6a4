"""The picture of a run: groups of bars. Nothing is drawn where matplotlib is missing."""

from typing import NamedTuple

import report

COLORS = {"kvcore": "#c8442f", "lmdb": "#4878a8", "rocksdict": "#7da35a", "dict": "#b0b0b0",
          "kvstore": "#c8442f", "kvstore text": "#c8442f", "kvstore resp": "#e39a5f",
          "redis": "#4878a8", "redis resp": "#4878a8"}
OTHERS = ("#7da35a", "#b0b0b0", "#8d6fa8", "#5fa8a0")


class Panel(NamedTuple):
    """One group of bars. `rows` are (figure, title, what it is multiplied by); scale is "linear" or "log"."""

    title: str
    rows: list
    scale: str = "linear"


def draw(title, panels, samples, path):
    """Write the plot to path (SVG), without the panels that have no figures; return whether it could be drawn."""
    panels = [panel for panel in panels if any(row[0] in found for row in panel.rows for found in samples.values())]
    if not panels:
        return False
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot")
        return False
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kvstore", "font.size": 9})
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        len(panels), 1, figsize=(8, 8), height_ratios=[len(panel.rows) + 0.7 for panel in panels], layout="constrained",
        squeeze=False)
    axes = grid[:, 0]
    colors = COLORS | dict(zip([name for name in samples if name not in COLORS], OTHERS * len(samples), strict=False))
    for axis, panel in zip(axes, panels, strict=True):
        bars(axis, samples, panel.rows, colors)
        axis.set_xlabel(panel.title)
        axis.set_xscale(panel.scale)
        axis.legend(fontsize=8, frameon=False)
    axes[0].set_title(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return True


def bars(axis, samples, rows, colors):
    """One group of horizontal bars per row, one bar for each that has such figures."""
    names = [name for name, found in samples.items() if any(figure in found for figure, _, _ in rows)]
    height = 0.8 / max(1, len(names))
    for place, name in enumerate(names):
        shown = [(y, value * scale) for y, (figure, _, scale) in enumerate(rows)
                 if (value := report.median(samples, name, figure)) is not None]
        positions = [y - 0.4 + height * (place + 0.5) for y, _ in shown]
        drawn = axis.barh(positions, [value for _, value in shown], height, color=colors[name], label=name)
        axis.bar_label(drawn, [report.short(value) for _, value in shown], padding=2, fontsize=7)
    axis.set_yticks(range(len(rows)), [title for _, title, _ in rows])
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
