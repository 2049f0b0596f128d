"""The charts of the comparison, drawn by Vega-Altair. Only this module imports it, and only where a chart is drawn.

A chart is a Vega-Lite specification whose colours are the page's CSS variables, so it turns dark with the page. Its
parameters are set by the page's script: `hidden` (numbers of lines), and those that a `Control` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from pipeline.comparison.legend import Control, Entry
from stages.report.palette import css
from stages.stage import JSON

WIDTH, HEIGHT = 640, 300
"""Pixels of a chart that stands alone. On the page it takes the width it gets."""


def curves(points: Sequence[JSON], entries: Sequence[Entry], controls: Sequence[Control]) -> alt.LayerChart:
    """Return the curves, with bands over seeds. Hovering brings one forward and names it."""
    near = alt.selection_point(name="near", fields=["name"], on="pointerover", nearest=True, clear="pointerout")
    chosen = "datum.measure === measure"
    over = "over === 'minutes' ? datum.minutes : datum.tokens"
    base = (
        _chart(points)
        .transform_filter(chosen)
        .transform_calculate(at=over)
        .transform_filter("isValid(datum.at)")
        .encode(
            x=alt.X("at:Q", title=None, axis=alt.Axis(format="~s", grid=False, tickCount=6)),
            color=_colour(entries),
        )
    )
    value = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    band = base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(
        y=value, strokeDash=_dash(entries), opacity=alt.when(near).then(alt.value(1)).otherwise(alt.value(0.2))
    )
    dots = base.mark_point(filled=True, size=28, opacity=1, tooltip=alt.expr(TOLD)).encode(y=value).add_params(near)
    return _finished(alt.layer(band, line, dots), controls)


def ranks(points: Sequence[JSON], entries: Sequence[Entry], at: str) -> alt.LayerChart:
    """Return test perplexity over rank at the shared or the tuned rate, or the rates found (`at`)."""
    drawn = [point for point in points if point["at"] == at]
    places = sorted({point["rank"] for point in points})
    encode = {
        "x": alt.X(
            "place:Q",
            title="rank",
            scale=alt.Scale(type="log", base=2, domain=[places[0] / 1.4, places[-1] * 1.4]),
            axis=alt.Axis(values=places),
        ),
        "color": _colour(entries),
    }
    # Both rates are drawn on one scale, so that a rate's effect is seen.
    alike = [point for point in points if (point["at"] == "rate") == (at == "rate")]
    domain = [min(point["low"] for point in alike) * 0.97, max(point["high"] for point in alike) * 1.03]
    scale = alt.Scale(type="log", nice=False, domain=domain)
    value = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(format="~g", tickCount=5))
    base = _chart(drawn).encode(**encode)
    whiskers = base.mark_rule(strokeWidth=1.2).encode(y=alt.Y("low:Q", title=None, scale=scale), y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(y=value, strokeDash=_dash(entries))
    dots = base.mark_point(filled=True, size=46, opacity=1).encode(
        y=value,
        tooltip=[
            alt.Tooltip("name:N", title="adapter"),
            "rank:Q",
            alt.Tooltip("value:Q", format=".4~g"),
            "seeds:Q",
        ],
    )
    return _finished(alt.layer(whiskers, line, dots))


def ratios(points: Sequence[JSON], entries: Sequence[Entry], dense: float | None) -> alt.LayerChart:
    """Return perplexity over what was removed, on a log axis; the dense model is a horizontal line."""
    places = sorted({round(point["removed"]) for point in points})
    scale = alt.Scale(type="log", nice=False, padding=12)
    axis = alt.Axis(values=places, labelExpr="datum.label + ' %'", grid=False)
    base = _chart(points).encode(
        x=alt.X("removed:Q", title="parameters removed", scale=alt.Scale(zero=False, padding=24), axis=axis),
        color=_colour(entries),
    )
    value = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(format="~g", tickCount=6))
    whiskers = base.mark_rule(strokeWidth=1.2).encode(y=alt.Y("low:Q", title=None, scale=scale), y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(y=value, strokeDash=_dash(entries))
    tooltip = [
        "name:N",
        alt.Tooltip("value:Q", title="perplexity", format=".4~g"),
        alt.Tooltip("removed:Q", format=".1f"),
    ]
    dots = base.mark_point(filled=True, size=46, opacity=1).encode(y=value, tooltip=tooltip)
    layers: list[Any] = [whiskers, line, dots]
    if dense is not None:
        rule = alt.Chart(alt.Data(values=[{"value": dense}]))
        layers.insert(0, rule.mark_rule(color=css("dense"), strokeDash=[2, 3], strokeWidth=1.6).encode(y="value:Q"))
    return _finished(alt.layer(*layers))


def costs(points: Sequence[JSON], entries: Sequence[Entry], controls: Sequence[Control], cost: str) -> alt.LayerChart:
    """Return a score over one cost, with the Pareto front as a stepped line."""
    drawn = [point for point in points if point["cost"] == cost]
    base = (
        _chart(drawn)
        .transform_filter("datum.measure === measure && datum.group === group")
        .encode(
            x=alt.X("x:Q", title=cost, scale=alt.Scale(zero=False, padding=14), axis=alt.Axis(grid=False, tickCount=5)),
        )
    )
    scale = alt.Scale(zero=False, padding=12)
    value = alt.Y("y:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5))
    front = base.transform_filter("datum.front").mark_line(interpolate="step-after", strokeWidth=1.2, strokeDash=[3, 3])
    whiskers = base.mark_rule(strokeWidth=1.2).encode(y=alt.Y("low:Q", title=None, scale=scale), y2="high:Q")
    tooltip = [
        alt.Tooltip("name:N", title="run"),
        alt.Tooltip("y:Q", title="score", format=".4~g"),
        alt.Tooltip("x:Q", title=cost, format=".4~s"),
    ]
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(y=value, tooltip=tooltip, color=_colour(entries))
    layers = (
        front.encode(y=value, color=alt.value(css("muted"))),
        whiskers.encode(color=_colour(entries)),
        dots,
    )
    return _finished(alt.layer(*layers), controls)


def kept(cells: Sequence[JSON], part: str) -> alt.Chart:
    """Return a heat map of what each layer kept: a row a pruned model, a column a layer; a darker cell kept more."""
    drawn = [cell for cell in cells if cell["part"] == part]
    rows = list(dict.fromkeys(cell["runs"] for cell in drawn))
    chart = _chart(drawn).mark_rect(stroke=css("rule"), strokeWidth=1, fill=css("recovered"))
    chart = chart.encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("runs:N", title="runs", sort=rows, axis=alt.Axis(labelLimit=90)),
        fillOpacity=alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None),
        tooltip=[
            alt.Tooltip("name:N", title="model"),
            "layer:O",
            alt.Tooltip("kept:Q", title=f"{part} kept"),
            "of:Q",
        ],
    )
    return _finished(chart, height=22 * len(rows))


def specification(chart: Any, description: str) -> JSON:
    """Return a chart for the page, which has its legend outside and gives it the width."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    return dict(chart.properties(width="container", autosize=fit, description=description).to_dict())


def svg(charts: Sequence[Any], titles: Sequence[str]) -> str:
    """Return charts side by side as one SVG, with a legend, for a page that runs no script."""
    import vl_convert

    width = WIDTH if len(charts) == 1 else WIDTH // 2
    shown = [
        chart.properties(width=width, title=alt.Title(title, anchor="start", fontWeight="normal", color=css("ink")))
        for chart, title in zip(charts, titles, strict=True)
    ]
    whole = alt.hconcat(*shown) if len(shown) > 1 else shown[0]
    return str(vl_convert.vegalite_to_svg(_styled(_with_legend(whole.to_dict()))))


def script() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that needs no network."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _with_legend(specification: JSON) -> JSON:
    """Return the specification with the legends of its colours and dashes, which the page leaves to its own."""
    found: JSON = {}
    for name, value in specification.items():
        if name in ("color", "strokeDash") and isinstance(value, dict) and "field" in value:
            found[name] = {**value, "legend": LEGEND}
        elif isinstance(value, dict):
            found[name] = _with_legend(value)
        elif isinstance(value, list):
            found[name] = [_with_legend(inner) if isinstance(inner, dict) else inner for inner in value]
        else:
            found[name] = value
    return found


def _chart(rows: Sequence[JSON]) -> alt.Chart:
    return alt.Chart(alt.Data(values=list(rows))).transform_filter("indexof(hidden, datum.line) < 0")


def _colour(entries: Sequence[Entry]) -> alt.Color:
    return alt.Color("name:N", scale=_scale(entries, lambda one: one.colour), legend=None)


def _dash(entries: Sequence[Entry]) -> alt.StrokeDash:
    return alt.StrokeDash("name:N", scale=_scale(entries, lambda one: list(one.dash)), legend=None)


def _scale(entries: Sequence[Entry], of: Callable[[Entry], Any]) -> alt.Scale:
    return alt.Scale(domain=[one.name for one in entries], range=[of(one) for one in entries])


def _finished(chart: Any, controls: Sequence[Control] = (), height: int = HEIGHT) -> Any:
    chosen = [alt.param(name=control.parameter, value=control.first) for control in controls]
    return chart.properties(height=height).add_params(alt.param(name="hidden", value=[]), *chosen)


def _styled(specification: JSON) -> JSON:
    return {**specification, "config": CONFIG}


TOLD = (
    "{run: (datum.datum || datum).name, value: format((datum.datum || datum).value, '.4~g'), "
    "tokens: format((datum.datum || datum).tokens, ',.0f')}"
)
"""What hovering a curve tells. Vega-Lite's own tooltip loses words where the nearest point is hovered: its cells, which
hold the point as their `datum`, are asked for the point's fields."""
LEGEND = {"orient": "bottom", "direction": "vertical", "title": None, "symbolOpacity": 1}
CONFIG: JSON = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domainColor": css("rule"),
        "gridColor": css("rule"),
        "tickColor": css("rule"),
        "labelColor": css("muted"),
        "titleColor": css("muted"),
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
    },
    "legend": {"labelColor": css("ink"), "labelLimit": 0, "symbolType": "stroke"},
}
"""How every chart looks: the page's colours, and thin lines."""
