"""How the panels of the dashboard look: makers for tools/dashboard.py, over Grafana's own library for dashboards as code.

In expressions "{" is written for what selects the chosen job and instances, and "[]" for the range that suits rates.
"""

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    DashboardRangeMapOptions,
    DataSourceRef,
    FieldColorModeId,
    RangeMap,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
SELECTED = 'job=~"$job",instance=~"$instance"'

STAT_HEIGHT = 4
GRAPH_HEIGHT = 8
LONG_AGO = 1e9  # seconds: 32 years
NEUTRAL = "text"  # the colour of a number that is neither good nor bad


def expand(expression: str) -> str:
    """The PromQL of an expression written in short."""
    return expression.replace("{", f"{{{SELECTED},").replace(",}", "}").replace("[]", "[$__rate_interval]")


def _query(expression, legend, letter):
    return prometheus.Dataquery().expr(expand(expression)).legend_format(legend).ref_id(letter)


def _thresholds(steps, base):
    """steps: (value, colour) from the lowest; below the first the colour is `base`."""
    found = [Threshold(value=value, color=color) for value, color in ((None, base), *steps)]
    return dashboards.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(found)


def stat_panel(
    title, description, unit, expression, *, legend="{{instance}}", steps=(), base="green", words=None, never=None,
    name=False, none=None, width=3, height=STAT_HEIGHT,
):
    """One number, the latest. base: its colour below the first of the steps, where limits or words give it one. words: what
    to show for a value, (text, colour); never: the colour of an age that counts from 1970; name: show the legend instead;
    none: what to show when there is nothing.
    """
    coloured = bool(steps or words or base != "green")
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .with_target(_query(expression, legend, "A").instant())
        .thresholds(_thresholds(steps, base if coloured else NEUTRAL))
        .color_scheme(dashboards.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .color_mode(common.BigValueColorMode.BACKGROUND if coloured else common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .text_mode(common.BigValueTextMode.NAME if name else common.BigValueTextMode.AUTO)
    )
    if words:
        options = {str(value): ValueMappingResult(text=text, color=color) for value, (text, color) in words.items()}
        panel.mappings([ValueMap(options=options)])
    if never:
        ages = DashboardRangeMapOptions(from_val=LONG_AGO, to=None, result=ValueMappingResult(text="never", color=never))
        panel.mappings([RangeMap(options=ages)])
    if none:
        panel.no_value(none)
    return panel


def graph_panel(title, description, unit, *queries, steps=(), stacked=False, log=False, width=8):
    """Lines over time. queries: (expression, legend); steps: limits, drawn as lines; log: a logarithmic scale."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(width)
        .height(GRAPH_HEIGHT)
        .fill_opacity(25 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .color_scheme(dashboards.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
    )
    for number, (expression, legend) in enumerate(queries):
        panel.with_target(_query(expression, legend, chr(ord("A") + number)).range())
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if log:
        panel.scale_distribution(common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10))
    else:
        panel.axis_soft_min(0)
    if steps:
        panel.thresholds(_thresholds(steps, "transparent"))
        panel.thresholds_style(common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    return panel


def heat_panel(title, description, unit, histogram, *, width=12):
    """How often each bucket of a histogram is met, over time. histogram: the name of its buckets, with its labels."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit("short")
        .span(width)
        .height(GRAPH_HEIGHT)
        .with_target(
            _query(f"sum by (le) (increase({histogram}[]))", "{{le}}", "A").range().format(PromQueryFormat.HEATMAP)
        )
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .cell_gap(1)
        .show_y_histogram()
        .show_legend()
    )
