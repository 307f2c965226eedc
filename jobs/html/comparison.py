"""A comparison of encoders as tables and as a page: one self-contained HTML file, made from comparison.json alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Final

from matplotlib.figure import Figure

from jobs.html import page
from jobs.html.evaluation import MODELS, POINTS, interval, p_text, points, svg
from model.ctr.inputs.cluster_id import CLUSTER_ID
from model.ctr.inputs.none import NONE
from model.ctr.inputs.registry import titles, trained_names
from model.ctr.inputs.true_style import TRUE_STYLE
from model.ctr.inputs.vector import VECTOR

IMAGES: Final = titles()
GAINS: Final = tuple(name for name in trained_names() if name != NONE.name)
KINDS: Final = tuple(name for name in GAINS if name != VECTOR.name)  # a vector may also be a name for its item
NEGATIVES: Final = {
    "popular": "50 by popularity",
    "category": "50 of its category",
    "matched": "50 alike",
    "page": "of the same page",
}
WARMTH: Final = {"all": "", "warm": ", on items clicked before", "cold": ", on new items"}
FIGURES: Final = {"auc": "AUC", "recall_at_10": "recall@10", "mrr": "MRR"}
PAIRED: Final = "the same resamples of users for both and for all their seeds"
SMALL: Final = 0.01  # the p-value that the comparison aims at
COLOURS: Final = ("#0072B2", "#C44E00", "#009E73", "#8C5A9E", "#E69F00", "#444444", "#56B4E9", "#B03060")

Found = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table: its cells are text, its first column names the line."""

    title: str
    caption: str
    columns: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]


def sheets(found: Found) -> list[Sheet]:
    """The comparison's tables. found: what comparison.json holds."""
    models = _models(found)
    tables = [_probe_sheet(found), *(make(found, model) for model in models for make in (_gain_sheet, _warmth_sheet))]
    if found["against"]:
        tables += [*(_against_sheet(found, *which) for which in product(models, WARMTH)), _against_probe_sheet(found)]
    return [*tables, *(_order_sheet(found, model) for model in models), _prediction_sheet(found)]


def _models(found: Found) -> list[str]:
    return list(dict.fromkeys(key.split("/")[0] for key in found["baseline"]))


def headline(found: Found) -> str:
    """Over how many baselines the reference stands, with SimScore and with cluster IDs, in one sentence."""
    baselines, reference = found["against"], found["reference"]
    if reference not in [one["label"] for one in found["methods"]]:
        return f"No run of {reference} got to its end: it is held against nothing."
    if not baselines:
        return "There is nothing that the runs could be held against."
    counts = []
    for model in _models(found):
        for images in KINDS:
            figures = [baseline["ctr"].get(f"{model}/{images}/all") for baseline in baselines]
            above = sum(1 for one in figures if one and _is_sure(one) and one["value"] > 0)
            counts.append(f"{above} of {len(baselines)} with {IMAGES[images]} ({MODELS[model]})")
    return f"{reference} is above {', '.join(counts)}, p < {SMALL}."


def render(found: Found) -> str:
    """The whole page. found: what comparison.json holds."""
    return page.render(
        "comparison.html.j2",
        found=found,
        headline=headline(found),
        sheets=sheets(found),
        forest=svg("gains", "AUC gain of each encoder, with intervals", gains_figure(found)),
        scatter=svg("prediction", "The probe's AUC against the AUC gain, a mark a run", prediction_figure(found)),
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def _probe_sheet(found: Found) -> Sheet:
    kinds = [kind for kind in NEGATIVES if any(f"{kind}/auc/all" in one["probe"] for one in found["methods"])]
    columns = [f"{NEGATIVES[kind]}, {part}" for kind in kinds for part in ("warm", "cold")]
    left = any(one["left"] for one in found["methods"])
    lines = []
    for one in found["methods"]:
        cells = [_mean(one["probe"].get(f"{kind}/auc/{part}")) for kind in kinds for part in ("warm", "cold")]
        cells += [_percent(one["left"].get(part)) for part in ("warm", "cold") if left]
        lines.append((one["label"], str(len(one["seeds"])), f"{one['steps']:,}", f"{one['seconds']:.0f}", *cells))
    more = [f"left when alike, {part}" for part in ("warm", "cold") if left]
    caption = f"mean over seeds ± spread over seeds; clicks of the {found['asked']['period']} period"
    if left:
        caption += f"; left: share of the AUC above chance among negatives alike in {found['asked']['match']}, which "
        caption += ", ".join(f"differs by {_apart(found, part)} for {part} clicks" for part in ("warm", "cold"))
    columns = ["encoder", "seeds", "steps", "training s", *columns, *more]
    return Sheet("Probe: the AUC of the next click", caption, tuple(columns), lines)


def _gain_sheet(found: Found, model: str) -> Sheet:
    sure = any("share" in gain for one in found["methods"] for gain in one["gains"].values())
    columns = ["encoder", *(IMAGES[images] for images in GAINS)]
    columns += [f"{IMAGES[images]}, of true style" for images in KINDS if sure]
    lines = []
    for one in found["methods"]:
        gains = [one["gains"].get(f"{model}/{images}/all") for images in GAINS]
        shares = [_percent((gains[GAINS.index(images)] or {}).get("share")) for images in KINDS if sure]
        lines.append((one["label"], *(_difference(gain, spread=True) for gain in gains), *shares))
    if true := found["true_style"].get(f"{model}/{TRUE_STYLE.name}/all"):
        gains = [_difference(true, spread=True) if images == CLUSTER_ID.name else "" for images in GAINS]
        shares = ["100%" if images == CLUSTER_ID.name else "" for images in KINDS if sure]
        lines.append((IMAGES[TRUE_STYLE.name], *gains, *shares))
    plain = found["baseline"][f"{model}/{NONE.name}/all"]["value"]
    auc = "not defined" if plain is None else f"{plain:.4f}"
    caption = f"points (AUC x 100) over the same model without images, whose AUC is {auc}; 95 % CI; ± spread"
    return Sheet(f"{MODELS.get(model, model)}: what images add", caption, tuple(columns), lines)


def _warmth_sheet(found: Found, model: str) -> Sheet:
    asked = [f"{model}/{images}/{part}" for images in KINDS for part in ("warm", "cold")]
    named = [f"{IMAGES[images]}, {part}" for images in KINDS for part in ("warm", "cold")]
    lines = [
        (one["label"], *(_difference(one["gains"].get(key), spread=True) for key in asked)) for one in found["methods"]
    ]
    title = f"{MODELS.get(model, model)}: what images add for items clicked before the test period, and for new ones"
    return Sheet(title, "points, 95 % CI; ± spread", ("encoder", *named), lines)


def _against_sheet(found: Found, model: str, part: str) -> Sheet:
    lines = []
    for baseline in found["against"]:
        figures = [baseline["ctr"].get(f"{model}/{images}/{part}") for images in GAINS]
        lines.append((baseline["baseline"], *(cell for one in figures for cell in (_difference(one), _p(one)))))
    columns = ["less", *(name for images in GAINS for name in (IMAGES[images], "p"))]
    title = f"{found['reference']} against the others, with {MODELS.get(model, model)}{WARMTH[part]}"
    return Sheet(title, f"differences of AUCs in points, 95 % CI: {PAIRED}", tuple(columns), lines)


def _against_probe_sheet(found: Found) -> Sheet:
    asked = [(kind, part) for kind in NEGATIVES for part in ("warm", "cold")]
    asked = [
        (k, part) for k, part in asked if any(f"{k}/auc/{part}" in baseline["probe"] for baseline in found["against"])
    ]
    lines = []
    for baseline in found["against"]:
        figures = [baseline["probe"].get(f"{kind}/auc/{part}") for kind, part in asked]
        lines.append((baseline["baseline"], *(_difference_p(one) for one in figures)))
    columns = ["less", *(f"{NEGATIVES[kind]}, {part}" for kind, part in asked)]
    title = f"{found['reference']} against the others, by the probe"
    return Sheet(title, f"differences of AUCs in points: {PAIRED}", tuple(columns), lines)


def _order_sheet(found: Found, model: str) -> Sheet:
    steps = [f"{more} over {less}" for less, more in pairwise(GAINS)]
    lines = []
    for one in found["methods"]:
        order = one["order"][model]
        cells = [cell for step in steps for cell in (_difference(order[step]), _p(order[step]))]
        lines.append((one["label"], "yes" if order["holds"] else "no", *cells))
    columns = ["encoder", "holds"]
    for less, more in pairwise(GAINS):
        columns += [f"{IMAGES[more]} over {IMAGES[less]}", "p"]
    title = f"{MODELS.get(model, model)}: {' < '.join(IMAGES[images] for images in GAINS)}?"
    return Sheet(title, "differences of AUCs in points, 95 % CI", tuple(columns), lines)


def _prediction_sheet(found: Found) -> Sheet:
    """Rank correlations, a line for each figure of the probe and a column for each gain."""
    gains = list(dict.fromkeys(one["gain"] for one in found["prediction"]))
    known = {(one["probe"], one["gain"]): one for one in found["prediction"]}
    lines = []
    for asked in dict.fromkeys(one["probe"] for one in found["prediction"]):
        kind, name = asked.split("/")
        named = f"{FIGURES[name]}, {NEGATIVES[kind]}"
        lines.append((named, *(_correlation(known[asked, gain]) for gain in gains)))
    columns = [f"{IMAGES[gain.split('/')[1]]}, {MODELS.get(gain.split('/')[0], '')}" for gain in gains]
    some = found["prediction"][0] if found["prediction"] else {"runs": 0, "methods": 0}
    caption = (
        f"Spearman's rank correlation over {some['runs']} runs; 95 % CI by resampling the {some['methods']} encoders "
        "with all their seeds"
    )
    return Sheet("Does the probe foretell what images add?", caption, ("probe", *columns), lines)


def _apart(found: Found, part: str) -> str:
    """How far negatives are from the target in the matched attribute, and how far those drawn by popularity are."""
    figures = [found["methods"][0]["probe"].get(f"{kind}/distance/{part}") for kind in ("matched", "popular")]
    apart = ["-" if one is None or one["value"] is None else f"{one['value']:.1f}" for one in figures]
    return f"{apart[0]} (by popularity {apart[1]})"


def _mean(figure: Found | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    return f"{figure['value']:.4f}" + ("" if figure["spread"] is None else f" ± {figure['spread']:.4f}")


def _difference(figure: Found | None, *, spread: bool = False) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    more = f" ± {figure['spread'] * POINTS:.2f}" if spread and figure["spread"] is not None else ""
    return f"{points(figure['value'])} ({interval(figure)}){more}"


def _difference_p(figure: Found | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    return f"{points(figure['value'])}, {p_text(figure['p_value'], equals=True)}"


def _p(figure: Found | None) -> str:
    return "-" if figure is None else p_text(figure["p_value"])


def _percent(figure: Found | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    return f"{figure['value']:.0%}" + (
        "" if figure["ci_low"] is None else f" ({figure['ci_low']:.0%} to {figure['ci_high']:.0%})"
    )


def _correlation(figure: Found) -> str:
    if figure["value"] is None:
        return "-"
    between = "" if figure["ci_low"] is None else f" ({figure['ci_low']:+.2f} to {figure['ci_high']:+.2f})"
    return f"{figure['value']:+.2f}{between}"


def _is_sure(figure: Found) -> bool:
    return figure["p_value"] is not None and figure["p_value"] < SMALL


# --- plots -----------------------------------------------------------------------------------------------------------


def gains_figure(found: Found) -> Figure:
    """Each encoder's gains in points with their 95 % intervals, a panel for each image input; small marks are seeds."""
    model = _models(found)[0]
    methods = found["methods"]
    figure = Figure(figsize=(10, 1.4 + 0.36 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(GAINS), sharey=True, squeeze=False)[0]
    for axes, images in zip(panels, GAINS, strict=True):
        for place, one in enumerate(methods):
            gain = one["gains"].get(f"{model}/{images}/all")
            if gain is None or gain["value"] is None:
                continue
            colour = COLOURS[0] if one["label"] == found["reference"] else COLOURS[1]
            if gain["ci_low"] is not None:
                axes.plot([gain["ci_low"] * POINTS, gain["ci_high"] * POINTS], [place, place], color=colour, lw=2)
            axes.plot([v * POINTS for v in gain["by_seed"]], [place] * len(gain["by_seed"]), "|", color="#333", ms=9)
            axes.plot(gain["value"] * POINTS, place, "o", color=colour, ms=6)
        axes.axvline(0, color="#888", lw=1)
        axes.set(title=f"{IMAGES[images]}, {MODELS.get(model, model)}", xlabel="AUC gain, points")
        axes.set_yticks(range(len(methods)), [one["label"] for one in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#ddd", lw=0.6)
    return figure


def prediction_figure(found: Found) -> Figure:
    """The probe's AUC against popularity's negatives beside the gain, a mark a run, a panel for each image input."""
    model = _models(found)[0]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels: Sequence[Any] = figure.subplots(1, len(GAINS), squeeze=False)[0]
    for axes, images in zip(panels, GAINS, strict=True):
        for number, one in enumerate(found["methods"]):
            probe, gain = one["probe"].get("popular/auc/all"), one["gains"].get(f"{model}/{images}/all")
            if probe and gain and len(probe["by_seed"]) == len(gain["by_seed"]):
                pairs = zip(probe["by_seed"], gain["by_seed"], strict=True)
                marks = [(auc, points * POINTS) for auc, points in pairs if None not in (auc, points)]
                colour, form = COLOURS[number % len(COLOURS)], "os^Dvp"[number // len(COLOURS) % 6]
                if marks:
                    axes.plot(*zip(*marks, strict=True), form, color=colour, label=one["label"])
        axes.set(xlabel="probe AUC", ylabel="AUC gain, points", title=IMAGES[images])
        axes.spines[["top", "right"]].set_visible(False)
    if panels[-1].has_data():
        panels[-1].legend(frameon=False, fontsize=8)
    return figure
