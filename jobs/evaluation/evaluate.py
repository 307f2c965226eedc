"""Evaluate the CTR models: evaluation.json, a table on the terminal and a page with plots.

The only stage that reads the truth that a generated world knows of itself (truth.parquet, truth_items.parquet).
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from rich.console import Console
from rich.table import Table

from feature_repo.contract import PERIODS
from jobs.config import EvaluateConfig
from jobs.html.evaluation import headline, render, table_lines
from jobs.paths import arrow_source
from jobs.raw.folder import source
from model import artifact, strict_json
from model.artifact import AnyPath, ArtifactMismatch, Manifest
from model.ctr.config import BoostedConfig, CtrConfig, NeuralConfig
from model.ctr.evaluation.evaluate import (
    TestRows,
    Variant,
    averages,
    compare,
    oracle,
    true_probabilities,
)
from model.ctr.inputs.item_vectors import ItemVectors
from model.ctr.inputs.none import NONE
from model.ctr.inputs.true_style import TRUE_STYLE, side_by_side, with_true_labels
from model.ctr.train import AS_SHOWN, encode_splits, fit_encoded, progress_bar

log = structlog.get_logger()

KIND: Final = "evaluate"
SCHEMA: Final = 1
FILES: Final = ("evaluation.json", "evaluation.html")
PROBABILITIES: Final = "truth.parquet"
STYLES: Final = "truth_items.parquet"


def build(
    *,
    ctr: Path,
    rows: Path,
    embed: Path,
    sequences: Path,
    raw: AnyPath,
    raw_digest: str,
    out: Path,
    config: EvaluateConfig,
) -> Manifest:
    """Write evaluation.json and evaluation.html, and print the table.

    Raises ArtifactMissing or ArtifactMismatch for its inputs, CourierError if the truth belongs to other events.
    """
    manifest = artifact.read(ctr, kind="ctr")
    _same_rows(manifest, rows, embed)
    predictions = pq.read_table(ctr / "predictions.parquet")
    variants = _variants(predictions, manifest)
    inputs = {"ctr": ctr, "rows": rows, "embed": embed, "sequences": sequences}
    digests = artifact.digests(inputs) | {"raw": raw_digest}
    with artifact.write(out, kind=KIND, inputs=digests, config=asdict(config)) as draft:
        with progress_bar() as progress:
            if (raw / STYLES).is_file():
                tables = {period: pq.read_table(rows / f"{period}.parquet") for period in PERIODS}
                styles = read_truth(raw / STYLES)
                variants += fit_true_style(tables, styles, ItemVectors.load(embed), _ctr_config(manifest), progress)
            evaluation = _evaluation(predictions, variants, raw, config, progress)
        evaluation["dataset"] = _dataset(raw, artifact.read(sequences, kind="sequences"), rows)
        (draft.path / FILES[0]).write_text(strict_json.dumps(evaluation, indent=1), "utf-8")
        (draft.path / FILES[1]).write_text(render(evaluation), "utf-8")
        draft.facts |= {"space_id": manifest.facts["space_id"], "headline": headline(evaluation)}
    print_table(evaluation)
    return artifact.read(out, kind=KIND)


def print_table(evaluation: Mapping[str, Any]) -> None:
    """The comparison as a table on stdout; gains in points, a hundredth of AUC each."""
    title = f"CTR models on {evaluation['dataset']['name']}: the test period"
    table = Table(title=title, caption="gain: AUC over the same model without images, in points (AUC x 100), 95 % CI")
    for name in ("model", "images", "encoder"):
        table.add_column(name)
    for name in ("AUC", "GAUC", "NDCG", "log loss", "gain", "95 % CI", "p", "cold gain", "cold 95 % CI"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in table_lines(evaluation):
        table.add_row(*line)
    Console(width=None if Console().is_terminal else 160).print(table)


# --- what is compared -----------------------------------------------------------------------------------------------


def _same_rows(manifest: Manifest, rows: Path, embed: Path) -> None:
    for name, path in (("rows", rows), ("embed", embed)):
        if manifest.inputs.get(name) != artifact.digest(path):
            raise ArtifactMismatch(f"the CTR models were not trained on {path}: train them again, then evaluate")


def _variants(predictions: pa.Table, manifest: Manifest) -> list[Variant]:
    found = []
    for model, images in product(manifest.config["models"], manifest.config["images"]):
        encoder = None if images == NONE.name else manifest.facts["encoder"]
        scores, as_shown = (predictions.column(f"{model}/{images}{form}").to_numpy() for form in ("", AS_SHOWN))
        found.append(Variant(model=model, images=images, encoder=encoder, scores=scores, as_shown=as_shown))
    return found


def _ctr_config(manifest: Manifest) -> CtrConfig:
    """The config that the ctr artifact was built with."""
    values = dict(manifest.config)
    boosted, neural = BoostedConfig(**values.pop("boosted")), NeuralConfig(**values.pop("neural"))
    return CtrConfig(**values, boosted=boosted, neural=neural)


def fit_true_style(
    tables: Mapping[str, pa.Table], styles: pa.Table, vectors: ItemVectors, config: CtrConfig, progress: Any
) -> list[Variant]:
    """Every model with the true style labels in place of cluster IDs: what perfect visual clusters would give.

    The labels are told apart (palette, texture, ornament): their combination is so fine that few clicks share one.
    """
    labels = [name for name in styles.column_names if name not in ("item_id", "style")]
    encoded = {
        label: encode_splits({p: with_true_labels(t, styles, label) for p, t in tables.items()}, vectors, config)
        for label in labels
    }
    coded = {label: splits.with_images(TRUE_STYLE.name) for label, splits in encoded.items()}
    given = {period: side_by_side({label: coded[label][period] for label in labels}) for period in PERIODS}
    splits = encoded[labels[0]]  # whose numbering the cluster IDs follow
    found = []
    for model in config.models:
        fitted = fit_encoded(model, given, splits, config, progress)
        found.append(
            Variant(
                model=model,
                images=TRUE_STYLE.name,
                encoder="true-style",
                scores=fitted.test,
                as_shown=fitted.test_as_shown,
            )
        )
    return found


def _evaluation(
    predictions: pa.Table, variants: list[Variant], raw: AnyPath, config: EvaluateConfig, progress: Any
) -> dict[str, Any]:
    begun = time.monotonic()
    test = TestRows.of(predictions)
    models = list(dict.fromkeys(variant.model for variant in variants))
    variants = sorted(variants, key=lambda variant: models.index(variant.model))  # a model's lines stand together
    task = progress.add_task("bootstrap", total=len(variants), figures=f"{config.bootstrap} resamples of users")
    rows = compare(
        test, variants, bootstrap=config.bootstrap, seed=config.seed, done=lambda: progress.update(task, advance=1)
    )
    log.info("models_compared", variants=len(variants), seconds=round(time.monotonic() - begun, 1))
    measured = {"rows": rows, "averages": averages(test), "oracle": _oracle(test, predictions, raw)}
    return {"schema": SCHEMA, "dataset": {}, **measured}


def _oracle(test: TestRows, predictions: pa.Table, raw: AnyPath) -> dict[str, Any] | None:
    if not (raw / PROBABILITIES).is_file():
        return None
    return oracle(test, true_probabilities(predictions, read_truth(raw / PROBABILITIES)))


def read_truth(path: AnyPath) -> pa.Table:
    """A table of what a generated world knows of itself."""
    where, files = arrow_source(path)
    return pq.read_table(where, filesystem=files)


def _dataset(raw: AnyPath, sequences: Manifest, rows: Path) -> dict[str, Any]:
    """What was measured on: the name, the periods, how many rows of each, and whether negatives were sampled."""
    about = source(raw)
    counts = {}
    for period in PERIODS:
        clicked = pq.read_table(rows / f"{period}.parquet", columns=["clicked"]).column("clicked")
        counts[period] = {"rows": len(clicked), "clicks": pc.sum(clicked).as_py() or 0}
    return {
        "name": about.get("name", raw.name),
        "description": about.get("description", ""),
        "sampled_negatives": bool(about.get("sampled_negatives", False)),
        "splits": sequences.facts["splits"],
        "rows": counts,
    }
