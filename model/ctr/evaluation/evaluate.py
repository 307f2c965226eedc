"""Compare CTR models on the test rows: ranking, fit, and what each image input adds, with its uncertainty."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model import metrics
from model.ctr.inputs.columns import sorted_codes
from model.ctr.inputs.none import NONE
from model.errors import CourierError
from model.metrics import Gain, UserBootstrap
from model.strict_json import nulled

NO_GAIN: Final = Gain(math.nan, math.nan, math.nan, math.nan)

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The predictions of one model with one image input for the test rows, (n,) each, in the rows' order.

    scores: as if shown at the top; for every figure of ranking.  as_shown: at the observed positions; for log loss and
    calibration, which hold a probability against a click that happened at a position.
    """

    model: str
    images: str
    encoder: str | None
    scores: Numbers
    as_shown: Numbers


@dataclass(frozen=True, slots=True)
class TestRows:
    """What happened in the test period: clicked (n,) 0/1, cold (n,) bool, users and pages (n,) int codes."""

    clicked: Numbers
    cold: NDArray[np.bool_]
    users: Numbers
    pages: Numbers

    __test__ = False  # a table of rows, not a test class

    @classmethod
    def of(cls, predictions: pa.Table) -> "TestRows":
        """From the columns of predictions.parquet."""
        return cls(
            predictions.column("clicked").to_numpy(),
            predictions.column("cold").combine_chunks().to_numpy(zero_copy_only=False).astype(bool),
            sorted_codes(predictions.column("user_id")),
            sorted_codes(predictions.column("request_id")),
        )


def compare(
    rows: TestRows, variants: list[Variant], *, bootstrap: int, seed: int, done: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """A row of figures for each variant, gains against the same model with images = none; None where undefined.

    auc_gain, ci_low, ci_high are differences of AUCs (0.01 is one point). `cold`: only rows whose item had no click
    before the test period; `warm`: the others.  done: called after each variant.
    """
    resamples = UserBootstrap(rows.users, replicates=bootstrap, seed=seed)
    kept = {"all": np.ones(len(rows.clicked), dtype=bool), "cold": rows.cold, "warm": ~rows.cold}
    baselines: dict[str, Mapping[str, tuple[float, Numbers]]] = {}
    found = []
    for variant in sorted(variants, key=lambda v: v.images != NONE.name):  # the baselines first
        aucs = {part: _auc(rows, variant, keep, resamples) for part, keep in kept.items()}
        if variant.images == NONE.name:
            baselines[variant.model] = aucs
        gains = {p: _gain(aucs[p], baselines.get(variant.model, {}).get(p), variant) for p in kept}
        figures = _figures(rows, variant) | _named(gains["all"])
        parts = {
            part: {"auc": aucs[part][0], **_named(gains[part]), "n": int(kept[part].sum())} for part in ("cold", "warm")
        }
        found.append(
            (variants.index(variant), {**figures, "n": len(rows.clicked), **parts, **_calibration(rows, variant)})
        )
        done()
    ordered: list[dict[str, Any]] = [nulled(row) for _, row in sorted(found, key=lambda pair: pair[0])]
    return ordered


def averages(rows: TestRows) -> dict[str, dict[str, int]]:
    """Over how many users GAUC is a mean, and over how many page views NDCG, of all there are.

    The others rank nothing: users with only clicks or none, page views without a click.
    """
    clicked = rows.clicked > 0
    users, by_user = (np.bincount(rows.users, weights=weights) for weights in (None, clicked))
    pages, by_page = (np.bincount(rows.pages, weights=weights) for weights in (None, clicked))
    both = (by_user > 0) & (by_user < users)
    return {
        "gauc": {"users": int(both.sum()), "of": int((users > 0).sum()), "rows": int(users[both].sum())},
        "ndcg": {"page_views": int((by_page > 0).sum()), "of": int((pages > 0).sum())},
    }


def oracle(rows: TestRows, p_click: Numbers) -> dict[str, Any]:
    """The figures of the true click probabilities, (n,), which know the positions too: what no model can pass."""
    figures = _figures(rows, Variant(model="oracle", images=NONE.name, encoder=None, scores=p_click, as_shown=p_click))
    cold = {"auc": metrics.auc(rows.clicked[rows.cold], p_click[rows.cold]), "n": int(rows.cold.sum())}
    kept = {name: figures[name] for name in ("auc", "gauc", "ndcg", "logloss")}
    found: dict[str, Any] = nulled({**kept, "n": len(p_click), "cold": cold})
    return found


def true_probabilities(predictions: pa.Table, truth: pa.Table) -> Numbers:
    """The p_click of each test row, (n,), by request and item. Raises CourierError where the truth lacks a row."""
    keys = ["request_id", "item_id"]
    asked = predictions.select(keys).append_column("place", pa.array(np.arange(predictions.num_rows)))
    wanted = truth.select([*keys, "p_click"]).cast(
        pa.schema([("request_id", pa.string()), ("item_id", pa.string()), ("p_click", pa.float64())])
    )
    joined = asked.join(wanted, keys=keys, join_type="left outer").sort_by("place")
    if without := joined.column("p_click").null_count:
        raise CourierError(
            f"truth.parquet holds no p_click of {without} of {predictions.num_rows} test rows, for it belongs to other "
            "events: remove it, or draw the world again"
        )
    if joined.num_rows != predictions.num_rows:
        raise CourierError(
            f"truth.parquet holds {joined.num_rows} p_clicks of {predictions.num_rows} test rows: remove the repeats"
        )
    found: Numbers = joined.column("p_click").to_numpy()
    return found


def _auc(rows: TestRows, variant: Variant, keep: NDArray[np.bool_], resamples: UserBootstrap) -> tuple[float, Numbers]:
    value = metrics.auc(rows.clicked[keep], variant.scores[keep])
    return value, resamples.aucs(rows.clicked, variant.scores, keep)


def _gain(ours: tuple[float, Numbers], theirs: tuple[float, Numbers] | None, variant: Variant) -> Gain:
    if theirs is None or variant.images == NONE.name:
        return NO_GAIN
    return UserBootstrap.gain(ours[0] - theirs[0], ours[1], theirs[1])


def _named(gain: Gain) -> dict[str, float]:
    named = asdict(gain)
    return {"auc_gain": named.pop("value"), **named}


def _figures(rows: TestRows, variant: Variant) -> dict[str, Any]:
    return {
        "model": variant.model,
        "images": variant.images,
        "encoder": variant.encoder,
        "auc": metrics.auc(rows.clicked, variant.scores),
        "gauc": metrics.gauc(rows.clicked, variant.scores, rows.users),
        "ndcg": metrics.ndcg(rows.clicked, variant.scores, rows.pages),
        "logloss": metrics.logloss(rows.clicked, variant.as_shown),
    }


def _calibration(rows: TestRows, variant: Variant) -> dict[str, Any]:
    return {"calibration": [asdict(part) for part in metrics.calibration(rows.clicked, variant.as_shown)]}
