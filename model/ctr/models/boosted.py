"""The boosted CTR model: LightGBM on the rows' numbers, with category, and cluster where asked for, as categoricals."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow as pa
from rich.progress import Progress

from model import strict_json
from model.ctr.config import BoostedConfig
from model.ctr.inputs.image_input import ModelInput
from model.ctr.inputs.inputs import model_input
from model.ctr.inputs.item_vectors import Floats, ItemVectors
from model.ctr.inputs.registry import image_input
from model.ctr.inputs.state import InputsState

KIND = "lightgbm"


@dataclass(frozen=True, slots=True)
class BoostedModel:
    """A fitted LightGBM model, the image input it was trained with, and the state of its inputs.

    threads: how many the prediction uses; one is quickest for the few hundred rows of a request.
    """

    images: str
    state: InputsState
    booster: lgb.Booster
    history: tuple[Mapping[str, float], ...] = ()
    threads: int = 1

    @classmethod
    def fit(
        cls,
        train: ModelInput,
        valid: ModelInput,
        clicked: tuple[Floats, Floats],
        state: InputsState,
        *,
        config: BoostedConfig,
        seed: int,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> "BoostedModel":
        """Train until the validation log loss stops falling. clicked: labels (B,) of train and valid.

        Early stopping looks at the validation rows with their observed positions, as they were shown; only predictions
        put them at the top. Same seed and same number of threads, same trees.
        """
        names, columns = columns_of(train, state)
        categories = names[names.index("category") :]
        settings = {"feature_name": list(names), "categorical_feature": list(categories)}
        first = lgb.Dataset(columns, clicked[0], params=_parameters(config, seed, threads), **settings)
        second = lgb.Dataset(columns_of(valid, state)[1], clicked[1], reference=first, **settings)
        history: list[Mapping[str, float]] = []
        booster = lgb.train(
            _parameters(config, seed, threads),
            first,
            num_boost_round=config.trees,
            valid_sets=[second],
            valid_names=["valid"],
            callbacks=[
                lgb.early_stopping(config.patience, verbose=False),
                _reporter(history, progress, rows=len(train), trees=config.trees, images=train.images),
            ],
        )
        best = max(1, booster.best_iteration)
        text = booster.model_to_string(num_iteration=best)
        return cls(train.images, state, lgb.Booster(model_str=text), tuple(history), threads)

    def score(self, given: ModelInput) -> Floats:
        """Click probabilities of encoded rows at the positions they carry: (B,) float32."""
        if not len(given):
            return np.zeros(0, dtype=np.float32)
        columns = columns_of(given, self.state)[1]
        found: Floats = np.asarray(self.booster.predict(columns, num_threads=self.threads)).astype(np.float32)
        return found

    def predict(self, table: pa.Table, vectors: ItemVectors | None = None) -> Floats:
        """Click probabilities of rows (form: model.ctr.inputs.rows) as if each were shown at the top: (B,) float32."""
        return self.score(model_input(table, self.state, vectors, self.images).at_top())

    def save(self, folder: Path) -> None:
        """Write model.json, trees.txt and the inputs' state into `folder`, which exists."""
        self.state.only(self.images).save(folder)
        (folder / "trees.txt").write_text(self.booster.model_to_string(), "utf-8")
        (folder / "model.json").write_text(strict_json.dumps({"model": KIND, "images": self.images}, indent=1), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "BoostedModel":
        """Read what `save` wrote."""
        about: dict[str, Any] = json.loads((folder / "model.json").read_text("utf-8"))
        booster = lgb.Booster(model_str=(folder / "trees.txt").read_text("utf-8"))
        return cls(about["images"], InputsState.load(folder), booster)


def columns_of(given: ModelInput, state: InputsState) -> tuple[tuple[str, ...], Floats]:
    """The names and the (B, F) float32 columns that the trees split on; those from "category" on are categories."""
    images, learned = image_input(given.images), state.learned[given.images]
    names, parts = [*given.names], [given.dense]
    if images.tree_numbers is not None:
        more, columns = images.tree_numbers(given, learned)
        names, parts = [*names, *more], [*parts, columns]
    singles = {"position": given.rows.position, "category": given.rows.category}
    if images.codes is not None:
        singles |= zip(images.codes.names, images.codes.of_targets(given.rows, slice(None), learned), strict=False)
    columns = np.column_stack([*parts, *(column.astype(np.float32) for column in singles.values())])
    return (*names, *singles), columns


def _parameters(config: BoostedConfig, seed: int, threads: int) -> dict[str, Any]:
    return {
        "objective": "binary",
        "metric": "binary_logloss",
        "max_bin": 63,
        "num_leaves": config.leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_rows_in_leaf,
        # A rare cluster must not buy its own split: by LightGBM's defaults 128 clusters cost half a point of AUC.
        "min_data_per_group": 500,
        "cat_smooth": 200.0,
        "cat_l2": 100.0,
        "feature_fraction_bynode": 0.8,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": threads,
        "verbosity": -1,
    }


def _reporter(
    history: list[Mapping[str, float]], progress: Progress | None, *, rows: int, trees: int, images: str
) -> Callable[[Any], None]:
    """A LightGBM callback that notes the validation loss of every tree and moves the bar."""
    begun = time.monotonic()
    task = progress.add_task(f"{KIND}/{images}", total=trees, figures="") if progress else None

    def report(state: Any) -> None:
        done, loss = state.iteration + 1, float(state.evaluation_result_list[0][2])
        history.append({"step": done, "valid_logloss": loss})
        if progress and task is not None:
            rate = rows * done / max(time.monotonic() - begun, 1e-9)
            progress.update(task, completed=done, figures=f"valid log loss {loss:.5f}  {rate:,.0f} rows/s")

    report.order = 20  # type: ignore[attr-defined]  # before early stopping (30), which ends the round by raising
    return report
