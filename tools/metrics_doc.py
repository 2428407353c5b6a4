"""Write docs/metrics.md, the list of all metrics, from the table that defines them: kvnet/families.py."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "metrics.md"

INTRO = """\
# Metrics

`http://HOST:9464/metrics` (`--metrics`) shows these to Prometheus, in OpenMetrics or the older text format, with gzip or
without. This page is made by `python tools/metrics_doc.py` from the table that defines them, `kvnet/families.py`.

Counters begin at 0 when the server starts; Prometheus makes rates of them, and percentiles of histograms. Every label set is
there from the start. Sizes are in bytes, times in seconds, instants in seconds since 1970.
"""

OUTRO = """\
## Not on the dashboard

Exported all the same, for whoever looks closer:

"""


def render() -> str:
    """The text of docs/metrics.md."""
    from kvnet.families import FAMILIES, SECTIONS

    parts = [INTRO]
    for title, families in SECTIONS.items():
        parts.append(f"## {title}\n\n| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n" + "".join(
            f"| `{family.name}` | {family.kind} | {family.unit} | {_code(family.labels)} | {family.meaning} |\n"
            for family in families))
    parts.append(OUTRO + "".join(f"- `{family.name}`: {family.apart}\n" for family in FAMILIES if family.apart))
    return "\n".join(parts)


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    TARGET.write_text(render(), encoding="utf-8")
