"""The picture of a run: time per operation, memory, time to open. Nothing is drawn where matplotlib is missing."""

import report

COLORS = {"kvcore": "#c8442f", "lmdb": "#4878a8", "rocksdict": "#7da35a", "dict": "#b0b0b0"}
BARS = (
    ("us per operation (log)", [(f.name, f.title.split(",")[0].split(":")[0], f.scale) for f in report.TABLES[0][1][:8]]
     + [("pizzaria_read", "pizzaria read", 1.0)]),
    ("private memory, MiB", [("memory_fill", "after a fill", report.MIB),
                             ("memory_reopen_clean", "after opening", report.MIB)]),
    ("opening, ms", [("reopen_clean", "after a close", 1e3), ("reopen_killed", "after kill -9", 1e3)]),
)


def draw(about, samples, path):
    """Write the plot to path (SVG); return whether it could be drawn."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot")
        return False
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kvstore", "font.size": 9})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(BARS), 1, figsize=(8, 8), height_ratios=[len(rows) + 0.7 for _, rows in BARS], layout="constrained")
    for panel, (title, rows) in zip(panels, BARS, strict=True):
        bars(panel, samples, rows)
        panel.set_xlabel(title)
    panels[0].set_xscale("log")
    panels[0].set_title(f"{about['keys']:,} keys of 16 bytes, values of 100 bytes: shorter is better", fontsize=10)
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return True


def bars(panel, samples, rows):
    """One group of horizontal bars per row, one bar per engine."""
    height = 0.8 / len(samples)
    for place, engine in enumerate(samples):
        shown = [(y, value * scale) for y, (name, _, scale) in enumerate(rows)
                 if (value := report.median(samples, engine, name)) is not None]
        positions = [y - 0.4 + height * (place + 0.5) for y, _ in shown]
        drawn = panel.barh(positions, [value for _, value in shown], height, color=COLORS[engine], label=engine)
        panel.bar_label(drawn, [f"{value:.3g}" for _, value in shown], padding=2, fontsize=7)
    panel.set_yticks(range(len(rows)), [title for _, title, _ in rows])
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.spines[["top", "right"]].set_visible(False)
