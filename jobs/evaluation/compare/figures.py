"""What runs of several encoders come to: means over seeds, what one has over another, what the probe foretells."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any, Final

import numpy as np

from jobs.evaluation import probe
from jobs.evaluation.compare.runs import IMAGES, NONE, TRUE_STYLE
from model.ctr.evaluation.encoders import Sample, Samples, common, difference_ci, mean_ci, rank_correlation, share
from model.strict_json import nulled

SCHEMA: Final = 1
CHANCE: Final = 0.5  # the AUC of an encoder that knows nothing
PARTS: Final = ("all", "warm", "cold")
COMPARABLE: Final = "comparable"  # drawn by popularity, for clicks that have negatives alike in the attribute too
OUTSIDE: Final = (NONE, TRUE_STYLE)
RANKED: Final = (
    ("popular", "auc"),
    ("popular", "recall_at_10"),
    ("popular", "mrr"),
    ("category", "auc"),
    ("page", "auc"),
)

Keyed = dict[tuple[str, ...], dict[int, Sample]]  # (what, ..., part) -> seed -> figure


@dataclass(frozen=True, slots=True)
class Results:
    """What the runs of one label came to, by seed.

    ctr: AUCs by (model, images, part), as ("lightgbm", "simscore", "warm").  probe: figures by (negatives, figure,
    part), as ("page", "auc", "all").  facts: of each seed's pretrain artifact.
    """

    label: str
    ctr: Keyed = field(default_factory=dict)
    probe: Keyed = field(default_factory=dict)
    facts: dict[int, Mapping[str, Any]] = field(default_factory=dict)


def compare(results: Sequence[Results], *, reference: str, bootstrap: int, seed: int) -> dict[str, Any]:
    """The comparison as JSON; the reference is held against each of the others, where a run of it got to its end.

    methods: for each label its probe figures and CTR gains over no images, all means over seeds (encoders.mean_ci and
    encoders.difference_ci); share: of the gain that the true labels give.  order: whether Vector < SimScore <
    Cluster-ID.
    against: what the reference has over each baseline.  prediction: how the probe's figures and the gains are ranked
    alike over all runs.
    """
    known = {result.label: result for result in results}
    entrants = [result for result in results if result.label not in OUTSIDE]
    gains = {result.label: _gains(result, known[NONE]) for result in results if result.label != NONE}
    true = gains.get(TRUE_STYLE, {})
    found = {
        "schema": SCHEMA,
        "reference": reference,
        "baseline": _levels(known[NONE].ctr),
        "true_style": _told(true),
        "methods": [_method(result, gains[result.label], true) for result in entrants],
        "against": [
            _against(known[reference], baseline)
            for baseline in entrants
            if reference in known and baseline.label != reference
        ],
        "prediction": _prediction(entrants, gains, bootstrap, seed),
    }
    plain: dict[str, Any] = nulled(found)
    return plain


def _gains(result: Results, none: Results) -> Keyed:
    """What images add to the same model with the same seed: (model, images, part) -> seed -> difference of AUCs."""
    found: Keyed = {}
    for key, samples in result.ctr.items():
        model, _, part = key
        plain = none.ctr[(model, NONE, part)]
        pairs = {seed: sample - plain[seed] for seed, sample in samples.items() if seed in plain}
        found |= {key: pairs} if pairs else {}
    return found


def _method(result: Results, gains: Keyed, true: Keyed) -> dict[str, Any]:
    facts = [result.facts[seed] for seed in sorted(result.facts)]
    told_gains = _told(gains)
    for key, samples in gains.items():
        whole = true.get((key[0], TRUE_STYLE, key[2]))
        if whole:
            told_gains["/".join(key)]["share"] = share(_ordered(samples), _ordered(whole))
    return {
        "label": result.label,
        "seeds": sorted(result.facts),
        "encoder": facts[0]["encoder"],
        "steps": facts[0]["steps"],
        "seconds": float(np.mean([one["seconds"] for one in facts])),
        "collapse": {name: _mean(one["collapse"][name] for one in facts) for name in facts[0]["collapse"]},
        "probe": _levels(result.probe),
        "left": _left(result),
        "gains": told_gains,
        "order": {model: _order(result, model) for model in dict.fromkeys(key[0] for key in gains)},
    }


def _mean(values: Iterable[float | None]) -> float:
    """Of those that are defined; NaN where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


def _left(result: Results) -> dict[str, Any]:
    """The share of the probe's AUC above chance that is left among negatives alike in an attribute, by part."""
    found = {}
    for part in PARTS:
        kinds = [result.probe.get((kind, "auc", part)) for kind in (probe.MATCHED, COMPARABLE)]
        if kinds[0] and kinds[1]:
            matched, plain = ([sample.above(CHANCE) for sample in _ordered(kind)] for kind in kinds if kind)
            found[part] = share(matched, plain)
    return found


def _order(result: Results, model: str) -> dict[str, Any]:
    """Whether Vector < SimScore < Cluster-ID in the mean over seeds, and how sure each of the two steps is."""
    steps = {}
    for less, more in pairwise(IMAGES):
        pair = (result.ctr[(model, images, "all")] for images in (more, less))
        steps[f"{more} over {less}"] = difference_ci(common(*pair))
    return {"holds": all(step["value"] > 0 for step in steps.values()), **steps}


def _against(ours: Results, theirs: Results) -> dict[str, Any]:
    """The reference less a baseline, for every seed that both have."""
    found: dict[str, Any] = {"baseline": theirs.label}
    for what in ("ctr", "probe"):
        mine, other = getattr(ours, what), getattr(theirs, what)
        pairs = {key: common(mine[key], other[key]) for key in mine if key in other}
        found[what] = {"/".join(key): difference_ci(samples) for key, samples in pairs.items() if samples}
    return found


def _prediction(
    entrants: Sequence[Results], gains: Mapping[str, Keyed], bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    found = []
    variants = dict.fromkeys(key for one in entrants for key in gains[one.label] if key[2] == "all")
    for (kind, name), variant in product(RANKED, variants):
        runs = [(one, k, gain) for one in entrants for k, gain in gains[one.label].get(variant, {}).items()]
        figures = rank_correlation(
            [one.probe[kind, name, "all"][k].value for one, k, _ in runs],
            [gain.value for _, _, gain in runs],
            [one.label for one, _, _ in runs],
            replicates=bootstrap,
            seed=seed,
        )
        found.append({"probe": f"{kind}/{name}", "gain": "/".join(variant[:2]), **figures})
    return found


def _ordered(samples: Samples) -> list[Sample]:
    return [samples[seed] for seed in sorted(samples)]


def _levels(samples: Mapping[tuple[str, ...], Samples]) -> dict[str, Any]:
    return {"/".join(key): mean_ci(_ordered(each)) for key, each in samples.items()}


def _told(samples: Mapping[tuple[str, ...], Samples]) -> dict[str, Any]:
    return {"/".join(key): difference_ci(_ordered(each)) for key, each in samples.items()}
