"""An evaluation as a page: one self-contained HTML file with its plots inside, made from evaluation.json alone."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from jobs.html import page
from model.ctr.inputs.cluster_id import CLUSTER_ID
from model.ctr.inputs.none import NONE
from model.ctr.inputs.registry import titles
from model.ctr.inputs.true_style import TRUE_STYLE

MODELS: Final = {"lightgbm": "LightGBM", "neural": "Neural"}
MOMENTS: Final = {
    "start": "training begins",
    "valid_start": "validation begins",
    "test_start": "test begins",
    "end": "test ends",
}
# Two colours that stay apart for colour-blind eyes (Okabe & Ito), and two markers besides.
COLOURS: Final = {"lightgbm": "#0072B2", "neural": "#C44E00"}
MARKERS: Final = {"lightgbm": "o", "neural": "s"}
CALIBRATED: Final = {NONE.name: "--", CLUSTER_ID.name: "-"}  # whose calibration is shown, and by which line
SIGNIFICANT: Final = 0.05
POINTS: Final = 100.0  # an AUC difference of 0.01 is one point

Row = Mapping[str, Any]


def render(evaluation: Mapping[str, Any]) -> str:
    """The whole page. evaluation: what evaluation.json holds."""
    rows = evaluation["rows"]
    return page.render(
        "evaluation.html.j2",
        headline=headline(evaluation),
        dataset=evaluation["dataset"],
        lines=table_lines(evaluation),
        best=_best_lines(evaluation),
        moments=MOMENTS,
        averages=evaluation["averages"],
        oracle=evaluation["oracle"],
        true_style=any(row["images"] == TRUE_STYLE.name for row in rows),
        forest=svg("forest", "AUC gain of each image input, with intervals", gains_figure(rows)),
        calibration=svg("calibration", "Predicted against observed click rates", calibration_figure(rows)),
        warmth=svg("warmth", "AUC gains on warm and on new items, with intervals", warmth_figure(rows)),
    )


def headline(evaluation: Mapping[str, Any]) -> str:
    """What cluster IDs did for each model, in one sentence."""
    changes = [_change(row) for row in evaluation["rows"] if row["images"] == CLUSTER_ID.name]
    name = evaluation["dataset"]["name"]
    if not changes:
        return f"No model with image cluster IDs was evaluated on {name}."
    return f"On {name}, image cluster IDs change the AUC of {', and that of '.join(changes)}."


def _change(row: Row) -> str:
    model = {"neural": "the neural model"}.get(row["model"], MODELS.get(row["model"], row["model"]))
    if row["auc_gain"] is None or row["p_value"] is None:
        return f"{model} by an amount that these rows cannot tell"
    verdict = "" if row["p_value"] < SIGNIFICANT else ", not told apart from zero"
    p_value = p_text(row["p_value"], equals=True)
    return f"{model} by {points(row['auc_gain'])} points (95 % CI {interval(row)}, {p_value}{verdict})"


# --- the table ------------------------------------------------------------------------------------------------------


def table_lines(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The comparison as text, a tuple of twelve cells a row; gains in points (AUC x 100), a dash where undefined."""
    return [_line(row) for row in evaluation["rows"]] + [
        ("oracle", "", "", *_figures(row), *_gain_cells({}), *_gain_cells({})[:2])
        for row in [evaluation["oracle"]]
        if row is not None
    ]


def _line(row: Row) -> tuple[str, ...]:
    model, images = MODELS.get(row["model"], row["model"]), titles().get(row["images"], row["images"])
    return (
        str(model),
        str(images),
        row["encoder"] or "-",
        *_figures(row),
        *_gain_cells(row),
        *_gain_cells(row["cold"])[:2],
    )


def _figures(row: Row) -> list[str]:
    return [_number(row[name], 4) for name in ("auc", "gauc", "ndcg", "logloss")]


def _gain_cells(row: Row) -> tuple[str, str, str]:
    if row.get("auc_gain") is None:
        return "-", "-", "-"
    return points(row["auc_gain"]), interval(row), p_text(row["p_value"])


def points(difference: float | None) -> str:
    """A difference of two AUCs, in points; a dash where undefined."""
    return "-" if difference is None else f"{difference * POINTS:+.2f}"


def interval(row: Row) -> str:
    """The interval of a difference of two AUCs, in points."""
    return "-" if row["ci_low"] is None else f"{points(row['ci_low'])} to {points(row['ci_high'])}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def p_text(value: float | None, *, equals: bool = False) -> str:
    """A p-value, not finer than a thousandth; equals: as it is told in a sentence."""
    if value is None:
        return "-"
    text = "< 0.001" if value < 0.001 else f"{value:.3f}"
    return f"p {'' if value < 0.001 else '= '}{text}" if equals else text


def _best_lines(evaluation: Mapping[str, Any]) -> list[bool]:
    """For each line of the table whether its gain is told apart from zero."""
    found = [row["p_value"] is not None and row["p_value"] < SIGNIFICANT for row in evaluation["rows"]]
    return [*found, False]


# --- the plots ------------------------------------------------------------------------------------------------------


def gains_figure(rows: Sequence[Row]) -> Figure:
    """A forest plot: each image input's gain in points, with its 95 % interval, per model."""
    kinds = _kinds(rows)
    figure, (axes,) = _figure(1, height=1.2 + 0.55 * len(kinds))
    models = _models(rows)
    for row in rows:
        if row["images"] in kinds and row["auc_gain"] is not None:
            at = kinds.index(row["images"]) + (models.index(row["model"]) - (len(models) - 1) / 2) * 0.28
            _interval_bar(axes, row, at)
    _forest_axes(axes, [titles().get(kind, kind) for kind in kinds], "AUC gain over images = none, points (AUC x 100)")
    _legend(axes, models)
    return figure


def warmth_figure(rows: Sequence[Row]) -> Figure:
    """The gain on items clicked before the test period beside that on items never clicked, a panel for each model."""
    kinds, models = _kinds(rows), _models(rows)
    figure, panels = _figure(max(1, len(models)), height=1.4 + 0.6 * len(kinds))
    for axes, model in zip(panels, models, strict=False):
        for row in (r for r in rows if r["model"] == model and r["images"] in kinds):
            for part, shift, face in (("warm", -0.15, COLOURS.get(model, "#333")), ("cold", 0.15, "white")):
                if row[part]["auc_gain"] is not None:
                    _interval_bar(axes, {**row[part], "model": model}, kinds.index(row["images"]) + shift, face)
        _forest_axes(axes, [titles().get(kind, kind) for kind in kinds], "AUC gain, points (AUC x 100)")
        axes.set_title(f"{MODELS.get(model, model)}: filled = clicked before, hollow = new items", fontsize=10)
    return figure


def calibration_figure(rows: Sequence[Row]) -> Figure:
    """Predicted against observed click rate in ten groups of equal size, without images and with clusters."""
    models = _models(rows)
    figure, panels = _figure(max(1, len(models)), height=3.8)
    for axes, model in zip(panels, models, strict=False):
        shown = [r for r in rows if r["model"] == model and r["images"] in CALIBRATED and r["calibration"]]
        for row in shown:
            x, y = ([part[name] * 100 for part in row["calibration"]] for name in ("predicted", "observed"))
            style, label = CALIBRATED[row["images"]], f"images = {titles()[row['images']]}"
            axes.plot(x, y, style, marker=MARKERS.get(model, "o"), ms=4, color=COLOURS.get(model), label=label)
        top = max([part[n] * 100 for r in shown for part in r["calibration"] for n in ("predicted", "observed")] or [1])
        axes.plot([0, top], [0, top], color="#888", lw=1, label="perfect")
        axes.set(xlabel="predicted, %", ylabel="clicked, %", title=MODELS.get(model, model))
        axes.legend(frameon=False, fontsize=9)
    return figure


def _kinds(rows: Sequence[Row]) -> list[str]:
    return [kind for kind in titles() if kind != NONE.name and any(row["images"] == kind for row in rows)]


def _models(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def _figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False, sharex=True)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _interval_bar(axes: Axes, row: Row, at: float, face: str | None = None) -> None:
    colour = COLOURS.get(row["model"], "#333333")
    if row["ci_low"] is not None:
        axes.plot([row["ci_low"] * POINTS, row["ci_high"] * POINTS], [at, at], color=colour, lw=2)
    marker = MARKERS.get(row["model"], "o")
    axes.plot(row["auc_gain"] * POINTS, at, marker, ms=7, mec=colour, mfc=face or colour, mew=1.5)


def _forest_axes(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.axvline(0, color="#888", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#ddd", lw=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Axes, models: Sequence[str]) -> None:
    for model in models:
        axes.plot([], [], MARKERS.get(model, "o"), color=COLOURS.get(model, "#333"), label=MODELS.get(model, model))
    axes.legend(frameon=False, fontsize=9)


def svg(name: str, label: str, figure: Figure) -> str:
    """The figure as an SVG element, its text kept as text, the same bytes each time; ids are unique to `name`."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'(id="|"#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
