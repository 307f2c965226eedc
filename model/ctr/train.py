"""Train every CTR model with every image input on the same rows, and predict the test rows with each."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from feature_repo.contract import PERIODS
from model import artifact, metrics, strict_json
from model.artifact import ArtifactMismatch, Manifest
from model.ctr.config import CtrConfig
from model.ctr.inputs import inputs
from model.ctr.inputs.encoded import Encoded, encode
from model.ctr.inputs.fit import fit_inputs
from model.ctr.inputs.image_input import ModelInput
from model.ctr.inputs.item_vectors import Floats, ItemVectors
from model.ctr.inputs.state import InputsState
from model.ctr.models.boosted import BoostedModel
from model.ctr.models.neural import NeuralModel
from model.ctr.released import released_networks
from model.errors import CourierError

log = structlog.get_logger()

HISTORY_FILE = "history.jsonl"  # how the training went
KIND: Final = "ctr"
AS_SHOWN: Final = "@shown"  # ends the names of the columns of predictions at the observed positions
ROW_KEYS: Final = ("request_id", "item_id", "user_id", "clicked", "cold")


class NotEnoughRows(CourierError):
    """A period has nothing that a model could learn from, or be stopped by."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The three periods as arrays, encoded once for all variants, and their labels."""

    state: InputsState
    vectors: ItemVectors
    rows: Mapping[str, Encoded]
    clicked: Mapping[str, Floats]

    def with_images(self, images: str) -> dict[str, ModelInput]:
        """Each period's model input with one kind of image input."""
        return {p: inputs.with_images(rows, self.state, self.vectors, images) for p, rows in self.rows.items()}


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained variant, its validation figures, and its predictions of the test rows, (n,) in their order.

    test: as if each row were shown at the top, the form in which a page is ranked.  test_as_shown: at the observed
    positions, the form in which a probability can be held against what happened.
    """

    model: BoostedModel | NeuralModel
    test: Floats
    test_as_shown: Floats
    valid_auc: float
    valid_logloss: float


def encode_splits(tables: Mapping[str, pa.Table], vectors: ItemVectors, config: CtrConfig) -> Splits:
    """Fit the inputs' state on the training rows and encode all periods. tables: train, valid and test.

    Raises NotEnoughRows if train or valid has no row, no click, or nothing but clicks.
    """
    clicked = {period: inputs.labels(tables[period]) for period in PERIODS}
    for period in PERIODS[:2]:
        _require_both(period, clicked[period])
    state = fit_inputs(tables["train"], vectors, config.vector_components)
    rows = {period: encode(tables[period], state, vectors) for period in PERIODS}
    return Splits(state, vectors, rows, clicked)


def _require_both(period: str, clicked: Floats) -> None:
    """Raises NotEnoughRows where a period has no rows that were clicked, or none that were not."""
    rows = len(clicked)
    if not rows:
        raise NotEnoughRows(f"the {period} period holds no row, for no page view began in it: bring more page views")
    if not clicked.any():
        raise NotEnoughRows(
            f"none of the {rows} {period} rows was clicked: bring clicks that name the request_id they answer"
        )
    if clicked.all():
        raise NotEnoughRows(
            f"each of the {rows} {period} rows was clicked, and a model learns from what was shown and not clicked: "
            "bring every impression"
        )


def fit_encoded(
    model: str,
    given: Mapping[str, ModelInput],
    splits: Splits,
    config: CtrConfig,
    progress: Progress | None = None,
    start: NeuralModel | None = None,
) -> Fitted:
    """One model on encoded rows; given: train, valid and test with the image input to use.

    start: what a neural model begins with. LightGBM begins anew: its trees know categories by their place in a
    vocabulary, would grow in number with every day, and take seconds.
    """
    clicked = splits.clicked["train"], splits.clicked["valid"]
    shared: dict[str, Any] = {"seed": config.seed, "threads": config.threads, "progress": progress}
    fitted: BoostedModel | NeuralModel
    if model == "lightgbm":
        fitted = BoostedModel.fit(
            given["train"], given["valid"], clicked, splits.state, config=config.boosted, **shared
        )
    elif model == "neural":
        fitted = NeuralModel.fit(
            given["train"], given["valid"], clicked, splits.state, config=config.neural, start=start, **shared
        )
    else:
        raise CourierError(f"no CTR model '{model}': there are lightgbm and neural")
    if progress:  # a model that stopped early is done: its bar is full and its clock stands
        progress.update(progress.tasks[-1].id, total=progress.tasks[-1].completed)
    return Fitted(
        fitted,
        fitted.score(given["test"].at_top()),
        fitted.score(given["test"]),
        metrics.auc(clicked[1], fitted.score(given["valid"].at_top())),
        metrics.logloss(clicked[1], fitted.score(given["valid"])),
    )


def build(
    *, rows: Path, embed: Path, codebook: Path, out: Path, config: CtrConfig, released: Mapping[str, Path] | None = None
) -> Manifest:
    """The ctr artifact: a folder per variant, predictions.parquet of the test rows, history.jsonl.

    rows, embed, codebook: finished artifacts.  released: `codebook` and `ctr` of the current release, with whose neural
    models the new ones begin where they can (model.ctr.released).
    Facts: trained_until is the moment of the last training row, warm_started the variants that began so.
    Raises ArtifactMismatch if they are of two spaces, NotEnoughRows.
    """
    about_rows, about_embed = artifact.read(rows, kind="rows"), artifact.read(embed, kind="embed")
    if about_rows.facts["space_id"] != about_embed.facts["space_id"]:
        raise ArtifactMismatch(f"{rows} and {embed} are of two spaces: build the rows again")
    tables = {period: pq.read_table(rows / f"{period}.parquet") for period in PERIODS}
    digests = artifact.digests({"rows": rows, "embed": embed, "codebook": codebook})
    space_id = str(about_embed.facts["space_id"])
    trained_until, valid_from = pc.max(tables["train"]["request_time"]), pc.min(tables["valid"]["request_time"])
    with artifact.write(out, kind=KIND, inputs=digests, config=asdict(config)) as draft:
        draft.log_files = (HISTORY_FILE,)
        begun = time.monotonic()
        splits = encode_splits(tables, ItemVectors.load(embed), config)
        count = sum(map(len, splits.rows.values()))
        log.info("ctr_rows_encoded", rows=count, seconds=round(time.monotonic() - begun, 1))
        starts = {}
        if released:
            starts = released_networks(released, codebook, space_id=space_id, valid_from=valid_from.as_py())
        fitted = _fit_all(splits, draft.path, config, starts)
        predictions = {name: pa.array(variant.test, pa.float32()) for name, variant in fitted.items()}
        predictions |= {name + AS_SHOWN: pa.array(v.test_as_shown, pa.float32()) for name, v in fitted.items()}
        keys = {name: tables["test"].column(name) for name in ROW_KEYS}
        pq.write_table(pa.table(keys | predictions), draft.path / "predictions.parquet")
        draft.facts |= {
            "space_id": space_id,
            "trained_until": trained_until.as_py().isoformat(),
            "warm_started": [name for name in fitted if name.startswith("neural/") and name[7:] in starts],
            "encoder": about_embed.facts["encoder"],
            "rows": {period: table.num_rows for period, table in tables.items()},
            "validation": {
                name: {"auc": variant.valid_auc, "logloss": variant.valid_logloss} for name, variant in fitted.items()
            },
            "best": max(fitted, key=lambda name: fitted[name].valid_auc),
        }
    return artifact.read(out, kind=KIND)


def _fit_all(splits: Splits, folder: Path, config: CtrConfig, starts: Mapping[str, NeuralModel]) -> dict[str, Fitted]:
    """Every variant, saved under `folder`; name "<model>/<images>" -> what was fitted. starts: by image input."""
    fitted: dict[str, Fitted] = {}
    with progress_bar() as progress, (folder / HISTORY_FILE).open("w", encoding="utf-8") as history:
        for images in config.images:
            given = splits.with_images(images)
            for model in config.models:
                begun = time.monotonic()
                variant = fit_encoded(model, given, splits, config, progress, start=starts.get(images))
                fitted[f"{model}/{images}"] = variant
                _save(variant, folder / f"{model}-{images}")
                for step in variant.model.history:
                    history.write(strict_json.dumps({"model": model, "images": images, **step}) + "\n")
                log.info(
                    "ctr_model_trained",
                    model=model,
                    images=images,
                    valid_auc=round(variant.valid_auc, 5),
                    seconds=round(time.monotonic() - begun, 1),
                )
    return {f"{m}/{i}": fitted[f"{m}/{i}"] for m, i in product(config.models, config.images)}


def _save(variant: Fitted, folder: Path) -> None:
    folder.mkdir()
    variant.model.save(folder)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar per model on stderr, with its loss and rows a second."""
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        yield progress
