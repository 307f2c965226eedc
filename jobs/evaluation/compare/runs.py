"""One encoder from its pre-training to the clicks it helps to predict: each step an artifact, skipped while it stands.

No Spark and no Feast: the workspace's CTR rows stay what they are, and only what an encoder says of their items is
put in its place. Runs of all methods and seeds therefore share every row, every other feature and every question.
"""

import json
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from rich.console import Console

from feature_repo.contract import EMBEDDING_DIM, PERIODS
from jobs.config import CodebookConfig
from jobs.embeddings import cluster, codebook
from jobs.evaluation import evaluate, probe
from jobs.evaluation.probe import Attribute, Period, Questions
from model import artifact, strict_json
from model.artifact import AnyPath, ArtifactMismatch, ArtifactMissing
from model.courier.config import CourierConfig, for_method
from model.courier.inference import embed
from model.courier.inference.probe import Measured
from model.courier.training import train
from model.courier.training.checkpoint import CheckpointMismatch, checkpoint_folder
from model.courier.training.methods import settle
from model.ctr.config import CtrConfig
from model.ctr.inputs import none, true_style
from model.ctr.inputs.cluster_id import with_cluster_ids
from model.ctr.inputs.item_vectors import ItemVectors
from model.ctr.inputs.registry import trained_names
from model.ctr.train import encode_splits, fit_encoded, progress_bar

log = structlog.get_logger()
console = Console(stderr=True)

NONE: Final = none.NONE.name
TRUE_STYLE: Final = true_style.TRUE_STYLE.name
IMAGES: Final = tuple(name for name in trained_names() if name != NONE)
SCORES: Final = "scores"
PROBE: Final = "probe"
STEPS: Final = ("pretrain", "embed", "codebook", "cluster", PROBE, SCORES)
NO_VECTORS: Final = ItemVectors([], np.zeros((0, EMBEDDING_DIM), dtype=np.float32))


@dataclass(frozen=True, slots=True)
class Entrant:
    """What is compared: a name, and which settings of CourierConfig, and of CodebookConfig, make it."""

    label: str
    settings: Mapping[str, Any]
    codebook: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not get to its end, and why."""

    label: str
    seed: int
    error: str


@dataclass(frozen=True)
class Bench:
    """What all runs share: the artifacts they start from, the configs before a method's settings and a run's seed."""

    folder: Path
    sequences: Path
    images: Path
    rows: Path
    raw: AnyPath
    pretrain: CourierConfig
    base: Mapping[str, Any]
    codebook: CodebookConfig
    ctr: CtrConfig
    period: Period = "valid"
    match: Attribute | None = None

    @cached_property
    def tables(self) -> dict[str, pa.Table]:
        """The CTR rows of the three periods; read when a model is first trained."""
        return {period: pq.read_table(self.rows / f"{period}.parquet") for period in PERIODS}

    @cached_property
    def styles(self) -> pa.Table | None:
        """The true labels of the items, where the raw folder is of a generated world."""
        path = self.raw / evaluate.STYLES
        return evaluate.read_truth(path) if path.is_file() else None

    @property
    def shared(self) -> Path:
        """Where lies what runs compute once for all: decoded images, features of a frozen backbone."""
        return self.folder / "shared"

    def run_folder(self, label: str, seed: int) -> Path:
        """Where a run's artifacts lie."""
        return self.folder / f"{label}-seed{seed}"


def run_all(bench: Bench, entrants: Sequence[Entrant], seeds: Sequence[int]) -> list[Failure]:
    """Bring every run up to date, and the baselines they are held against; returns those that failed.

    A run that fails takes no other with it; one that is stopped goes on with the step it was in.
    """
    failures = []
    total, done = len(entrants) * len(seeds), 0
    for seed in seeds:
        fit_baselines(bench, seed)
    for seed in seeds:  # every method once before any method twice: a table stands as early as can be
        for entrant in entrants:
            done += 1
            console.print(f"[bold]{entrant.label}, seed {seed}[/bold] ({done} of {total})")
            try:
                run(bench, entrant, seed)
            except Exception as error:
                log.error("run_failed", label=entrant.label, seed=seed, error=str(error), trace=traceback.format_exc())
                failures.append(Failure(entrant.label, seed, f"{type(error).__name__}: {error}"))
    shutil.rmtree(bench.shared, ignore_errors=True)  # a run that is stopped leaves it to the one that goes on
    return failures


def run(bench: Bench, entrant: Entrant, seed: int) -> None:
    """Pre-train, embed, cluster, probe and predict with one method and one seed, where that does not stand yet."""
    folder = bench.run_folder(entrant.label, seed)
    artifact.sweep(folder)
    paths = {step: folder / step for step in STEPS}
    config = settle(for_method(bench.pretrain, {"seed": seed, **bench.base, **entrant.settings}))
    ensure(
        paths["pretrain"],
        {"sequences": bench.sequences, "images/pictures": bench.images},
        asdict(config),
        lambda out: _train(bench, out, config),
    )
    ensure(
        paths["embed"],
        {"pretrain": paths["pretrain"], "images/pictures": bench.images},
        None,
        lambda out: embed.build(pretrain=paths["pretrain"], images=bench.images, out=out),
    )
    fit = replace(bench.codebook, seed=seed, **entrant.codebook)
    ensure(
        paths["codebook"],
        {"embed": paths["embed"], "sequences": bench.sequences},
        asdict(fit),
        lambda out: codebook.build(embed=paths["embed"], sequences=bench.sequences, out=out, config=fit),
    )
    ensure(
        paths["cluster"],
        {"embed": paths["embed"], "codebook": paths["codebook"]},
        None,
        lambda out: cluster.build(embed=paths["embed"], codebook=paths["codebook"], out=out),
    )
    asked = {"sequences": bench.sequences, "images": bench.images, "embed": paths["embed"]}
    ensure(paths[PROBE], asked, _probed(bench), lambda out: probe_run(bench, out, asked))
    clicks = {"rows": bench.rows, "embed": paths["embed"], "cluster": paths["cluster"]}
    models = replace(bench.ctr, seed=seed, images=IMAGES)
    ensure(paths[SCORES], clicks, asdict(models), lambda out: score_run(bench, out, clicks, models))


def _train(bench: Bench, out: Path, config: CourierConfig) -> None:
    """Pre-train; an unfinished run of other settings or other data in its place is given up, as a finished one is."""
    given = {"sequences": bench.sequences, "images": bench.images, "config": config, "shared": bench.shared}
    try:
        train.build(out=out, **given)  # type: ignore[arg-type]
    except CheckpointMismatch:
        folder = checkpoint_folder(out)
        log.warning("unfinished_run_given_up", folder=str(folder))
        shutil.rmtree(folder)
        train.build(out=out, **given)  # type: ignore[arg-type]


def ensure(
    out: Path, inputs: Mapping[str, Path], config: Mapping[str, Any] | None, build: Callable[[Path], object]
) -> None:
    """Build the artifact `out`, whose name is its kind, unless it stands: made from these inputs with this config.

    config: None where it may be any.
    """
    digests = artifact.digests(inputs)
    if _stands(out, digests, config):
        console.print(f"[dim]{out.name:<9} stands[/dim]")
        return
    begun = time.monotonic()
    build(out)
    console.print(f"{out.name:<9} built in {time.monotonic() - begun:.1f} s")


def _stands(out: Path, digests: Mapping[str, str], config: Mapping[str, Any] | None) -> bool:
    try:
        manifest = artifact.read(out, kind=out.name)
    except (ArtifactMissing, ArtifactMismatch):
        return False
    same = config is None or manifest.config == json.loads(strict_json.dumps(config))
    return same and all(manifest.inputs.get(name) == digest for name, digest in digests.items())


# --- the probe -------------------------------------------------------------------------------------------------------


def _probed(bench: Bench) -> dict[str, Any]:
    """What the questions depend on besides the artifacts."""
    match = bench.match
    table = artifact.sha256_file(match.table) if match and match.table else None
    return {"period": bench.period, "match": match.name if match else None, "attributes": table}


def ask(bench: Bench, embed: Path) -> Questions:
    """What every encoder of this bench is asked; all are of the same images."""
    return probe.ask(
        sequences=bench.sequences, images=bench.images, embed=embed, period=bench.period, match=bench.match
    )


def probe_run(bench: Bench, out: Path, inputs: Mapping[str, Path]) -> None:
    """The figures of every click. inputs: sequences, images, embed; the questions do not depend on the run's seed."""
    questions = ask(bench, inputs["embed"])
    measured = probe.measure(questions, inputs["embed"])
    digests = artifact.digests(inputs)
    with artifact.write(out, kind=PROBE, inputs=digests, config=_probed(bench)) as draft:
        flat: dict[str, Any] = {
            f"{kind}/{name}": values for kind, figures in measured.items() for name, values in figures.items()
        }
        np.savez(draft.path / "figures.npz", **flat)
        draft.facts |= {"clicks": len(questions.clicks)}


def read_measured(folder: Path) -> Measured:
    """What `probe_run` wrote."""
    found: dict[str, dict[str, Any]] = {}
    with np.load(folder / "figures.npz", allow_pickle=False) as arrays:
        for key in arrays.files:
            kind, name = key.split("/")
            found.setdefault(kind, {})[name] = arrays[key]
    return found


# --- the clicks ------------------------------------------------------------------------------------------------------


def score_run(bench: Bench, out: Path, inputs: Mapping[str, Path], config: CtrConfig) -> None:
    """Train the CTR models with this encoder's vectors and cluster IDs. inputs: rows, embed, cluster."""
    clusters = pq.read_table(inputs["cluster"] / cluster.ITEMS)
    tables = {period: with_cluster_ids(table, clusters) for period, table in bench.tables.items()}
    _write_scores(out, inputs, config, _fit(tables, ItemVectors.load(inputs["embed"]), config))


def fit_baselines(bench: Bench, seed: int) -> None:
    """The models without images, and with the true labels where they are known, by the same seed."""
    inputs = {"rows": bench.rows}
    plain = replace(bench.ctr, seed=seed, images=(NONE,))
    folder = bench.run_folder(NONE, seed)
    artifact.sweep(folder)
    console.print(f"[bold]without images, seed {seed}[/bold]")
    ensure(
        folder / SCORES,
        inputs,
        asdict(plain),
        lambda out: _write_scores(out, inputs, plain, _fit(bench.tables, NO_VECTORS, plain)),
    )
    if bench.styles is not None:
        config = replace(bench.ctr, seed=seed, images=(TRUE_STYLE,))
        folder = bench.run_folder(TRUE_STYLE, seed)
        artifact.sweep(folder)
        ensure(folder / SCORES, inputs, asdict(config), lambda out: _score_true_style(bench, out, inputs, config))


def _score_true_style(bench: Bench, out: Path, inputs: Mapping[str, Path], config: CtrConfig) -> None:
    with progress_bar() as progress:
        found = evaluate.fit_true_style(bench.tables, bench.styles, NO_VECTORS, config, progress)
    _write_scores(out, inputs, config, {f"{one.model}/{one.images}": one.scores for one in found})


def _fit(tables: Mapping[str, pa.Table], vectors: ItemVectors, config: CtrConfig) -> dict[str, Any]:
    """The test rows' scores by every model and image input: "<model>/<images>" -> (n,) float32."""
    splits = encode_splits(tables, vectors, config)
    found = {}
    with progress_bar() as progress:
        for images in config.images:
            given = splits.with_images(images)
            for model in config.models:
                found[f"{model}/{images}"] = fit_encoded(model, given, splits, config, progress).test
    return found


def _write_scores(out: Path, inputs: Mapping[str, Path], config: CtrConfig, scores: Mapping[str, Any]) -> None:
    digests = artifact.digests(inputs)
    with artifact.write(out, kind=SCORES, inputs=digests, config=asdict(config)) as draft:
        columns = {name: pa.array(values, pa.float32()) for name, values in scores.items()}
        pq.write_table(pa.table(columns), draft.path / "scores.parquet")


def read_scores(folder: Path) -> dict[str, Any]:
    """What a step `scores` wrote: "<model>/<images>" -> (n,) of the test rows. Raises ArtifactMissing."""
    artifact.read(folder, kind=SCORES)
    table = pq.read_table(folder / "scores.parquet")
    return {name: table.column(name).to_numpy() for name in table.column_names}
