"""The neural CTR model: target attention over the clicks of the history, in the way of the Deep Interest Network.

Zhou et al. 2018, https://arxiv.org/abs/1706.06978: each click is weighted by what it has to do with the target, and the
weighted sum is not normalised, so that many related clicks say more than one. Image inputs enter there: embeddings of
their codes and projected vectors as part of a click, facts (a cosine) as something the attention may look at.
"""

import copy
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feature_repo.contract import CTR_HISTORY, EMBEDDING_DIM
from model import strict_json
from model.ctr.config import NeuralConfig
from model.ctr.inputs.image_input import ModelInput
from model.ctr.inputs.inputs import model_input
from model.ctr.inputs.item_vectors import Floats, ItemVectors
from model.ctr.inputs.registry import image_input
from model.ctr.inputs.state import InputsState
from model.ctr.models.warm_start import continue_network
from model.metrics import logloss

KIND: Final = "neural"
POSITIONS: Final = 32  # positions beyond share the last embedding
SCORE_ROWS: Final = 4096
UNKNOWN_SHARE: Final = 0.1  # of the IDs hidden in training, so that the unknown item's embedding is a trained one
OUTLIER: Final = 5.0  # standardised numbers are cut here
CHECKS_AN_EPOCH: Final = 2  # over-fitting can begin within the first epoch (Zhang et al. 2022)
SUM_SCALE: Final = 1.0 / np.sqrt(10.0)  # keeps the unnormalised sum of some ten clicks near unit size


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """The sizes that a network is built from; saved beside its weights.

    codes, facts, projected: of the image input, see model.ctr.inputs.image_input.
    """

    items: int
    categories: int
    codes: tuple[int, ...]
    facts: int
    projected: bool
    dense: int
    id_width: int
    hidden: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows as tensors; C = their clicks, one after the other, `click_row` (C,) says whose each is.

    vectors: (U, 256), the distinct vectors of the batch, the first of them zero: no vector.
    target_vector (B,), click_vector (C,): which of them is whose.
    """

    dense: Tensor  # (B, F)
    ids: Tensor  # (B, 3 + codes): item, category, position, the codes of the image input
    clicks: Tensor  # (C, 2 + codes): item, category, the codes
    click_facts: Tensor  # (C, 1 + facts): age, the facts of the image input, 0 where unknown
    click_row: Tensor  # (C,)
    vectors: Tensor
    target_vector: Tensor
    click_vector: Tensor


class TargetAttention(nn.Module):
    """Logits of clicks; see the module's docstring."""

    median: Tensor
    scale: Tensor

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        width, small = widths.id_width, max(2, widths.id_width // 2)
        self.register_buffer("median", torch.zeros(widths.dense))
        self.register_buffer("scale", torch.ones(widths.dense))
        self.item = _embedding(widths.items + 1, width)
        self.category = _embedding(widths.categories + 1, small)
        self.position = _embedding(POSITIONS, 4)
        one = width + small
        self.codes = nn.ModuleList(_embedding(size + 1, width) for size in widths.codes)
        one += width * len(widths.codes)
        self.project = None
        if widths.projected:
            self.project = nn.Linear(EMBEDDING_DIM, width, bias=False)
            # a unit vector comes out at half a unit a place: torch's 0.04 leaves target x click too faint to learn from
            nn.init.normal_(self.project.weight, std=0.5)
            one += width
        self.relate = nn.Linear(one + 1 + widths.facts, 16, bias=False)  # of target x click, and of the click's facts
        self.click = nn.Linear(one, 16, bias=False)
        self.target = nn.Linear(one, 16)
        self.weigh = nn.Linear(16, 1)
        sizes = (widths.dense + 2 * one + 4, *widths.hidden)
        layers = [nn.Sequential(nn.Linear(a, b), nn.PReLU()) for a, b in pairwise(sizes)]
        self.head = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, batch: Batch) -> Tensor:
        """Logits: (B,)."""
        vectors = self.project(batch.vectors) if self.project is not None else None
        target = self._describe(batch.ids, batch.ids[:, 3:], vectors, batch.target_vector)
        click = self._describe(batch.clicks, batch.clicks[:, 2:], vectors, batch.click_vector)
        interest = torch.zeros_like(target)
        interest = interest.index_add(0, batch.click_row, click * self._weights(batch, target, click)) * SUM_SCALE
        dense = ((batch.dense - self.median) / self.scale).clamp(-OUTLIER, OUTLIER).nan_to_num(0.0)
        position = self.position(batch.ids[:, 2].clamp(max=POSITIONS - 1))
        logits: Tensor = self.head(torch.cat([dense, target, interest, position], dim=1))
        return logits[:, 0]

    def _describe(self, ids: Tensor, codes: Tensor, vectors: Tensor | None, which: Tensor) -> Tensor:
        """(n, D): an item as the concatenation of its embeddings."""
        parts = [self.item(ids[:, 0]), self.category(ids[:, 1])]
        parts += [table(codes[:, place]) for place, table in enumerate(self.codes)]
        if vectors is not None:
            parts.append(F.embedding(which, vectors))
        return torch.cat(parts, dim=1)

    def _weights(self, batch: Batch, target: Tensor, click: Tensor) -> Tensor:
        """(C, 1): how much each click says about its target, in (0, 1)."""
        together = torch.cat([click * F.embedding(batch.click_row, target), batch.click_facts], dim=1)
        mine = F.embedding(batch.click_row, self.target(target))
        return torch.sigmoid(self.weigh(F.relu(self.relate(together) + self.click(click) + mine)))


def _embedding(count: int, width: int) -> nn.Embedding:
    table = nn.Embedding(count, width)
    nn.init.normal_(table.weight, std=0.05)
    return table


@dataclass(frozen=True, slots=True)
class NeuralModel:
    """A fitted network, the image input it was trained with, and the state of its inputs."""

    images: str
    state: InputsState
    widths: Widths
    network: TargetAttention
    history: tuple[Mapping[str, float], ...] = ()

    @classmethod
    def fit(
        cls,
        train: ModelInput,
        valid: ModelInput,
        clicked: tuple[Floats, Floats],
        state: InputsState,
        *,
        config: NeuralConfig,
        seed: int,
        threads: int = 1,
        progress: Progress | None = None,
        start: "NeuralModel | None" = None,
    ) -> "NeuralModel":
        """Train until the validation log loss stops falling, and keep the best weights.

        clicked: labels (B,) of train and valid.  start: a model to begin with, kept as it is if no check is better.
        Early stopping looks at the validation rows with their observed positions, as they were shown; only predictions
        put them at the top. Same seed and same number of threads, same weights.
        """
        images = image_input(train.images)
        widths = Widths(
            items=len(state.items),
            categories=len(state.categories),
            codes=images.codes.sizes(state.learned[train.images]) if images.codes is not None else (),
            facts=0 if train.facts is None else train.facts.shape[2],
            projected=images.projected,
            dense=train.dense.shape[1],
            id_width=config.id_width,
            hidden=tuple(config.hidden),
        )
        with _threads(threads), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = TargetAttention(widths)
            _standardise(network, train.dense)
            share = float(np.clip(clicked[0].mean(), 1e-4, 1 - 1e-4))
            nn.init.constant_(network.head[-1].bias, float(np.log(share / (1 - share))))  # type: ignore[arg-type]
            if start is not None:
                continue_network(network, state, start)
            model = cls(train.images, state, widths, network)
            history = _train(
                model, train, valid, clicked, config=config, seed=seed, progress=progress, started=start is not None
            )
        return cls(train.images, state, widths, network, tuple(history))

    def score(self, given: ModelInput) -> Floats:
        """Click probabilities of encoded rows at the positions they carry: (B,) float32."""
        self.network.eval()
        out = np.zeros(len(given), dtype=np.float32)
        with torch.no_grad():
            for begin in range(0, len(given), SCORE_ROWS):
                rows = np.arange(begin, min(begin + SCORE_ROWS, len(given)))
                out[rows] = torch.sigmoid(self.network(batch_of(given, self.state, rows))).numpy()
        return out

    def predict(self, table: pa.Table, vectors: ItemVectors | None = None) -> Floats:
        """Click probabilities of rows (form: model.ctr.inputs.rows) as if each were shown at the top: (B,) float32."""
        return self.score(model_input(table, self.state, vectors, self.images).at_top())

    def save(self, folder: Path) -> None:
        """Write model.json, weights.safetensors and the inputs' state into `folder`, which exists."""
        self.state.only(self.images).save(folder)
        save_file(
            {name: t.contiguous() for name, t in self.network.state_dict().items()}, folder / "weights.safetensors"
        )
        about = {"model": KIND, "images": self.images, "widths": asdict(self.widths)}
        (folder / "model.json").write_text(strict_json.dumps(about, indent=1), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "NeuralModel":
        """Read what `save` wrote."""
        state = InputsState.load(folder)
        about: dict[str, Any] = json.loads((folder / "model.json").read_text("utf-8"))
        widths = Widths(**about["widths"] | {name: tuple(about["widths"][name]) for name in ("hidden", "codes")})
        with torch.random.fork_rng(devices=[]):
            network = TargetAttention(widths)
        network.load_state_dict(load_file(folder / "weights.safetensors"))
        return cls(about["images"], state, widths, network.eval())


# --- batches --------------------------------------------------------------------------------------------------------


def batch_of(
    given: ModelInput, state: InputsState, rows: NDArray[np.int64], hide: NDArray[np.bool_] | None = None
) -> Batch:
    """The chosen rows (indices) as tensors. hide: (items + 1,), codes to take for unknown."""
    encoded = given.rows
    row, place = np.nonzero(np.arange(CTR_HISTORY) < encoded.length[rows][:, None])
    here = rows[row], place
    item, clicked_item = encoded.item[rows], encoded.history_item[here]
    if hide is not None:
        item, clicked_item = np.where(hide[item], 0, item), np.where(hide[clicked_item], 0, clicked_item)
    images, learned = image_input(given.images), state.learned[given.images]
    codes = images.codes.of_targets(encoded, rows, learned) if images.codes is not None else ()
    clicked_codes = images.codes.of_clicks(encoded, here, learned) if images.codes is not None else ()
    facts = [] if given.facts is None else [np.nan_to_num(given.facts[here])]
    vectors, target_vector, click_vector = _vectors(given, rows, here)
    return Batch(
        dense=torch.from_numpy(given.dense[rows]),
        ids=_tensor(item, encoded.category[rows], encoded.position[rows], *codes),
        clicks=_tensor(clicked_item, encoded.history_category[here], *clicked_codes),
        click_facts=torch.from_numpy(np.column_stack([encoded.history_age[here], *facts])),
        click_row=torch.from_numpy(row),
        vectors=vectors,
        target_vector=target_vector,
        click_vector=click_vector,
    )


def _vectors(given: ModelInput, rows: NDArray[np.int64], here: tuple[Any, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct vectors of a batch after a row of zeros, and who uses which."""
    none = torch.zeros(0, dtype=torch.int64)
    if given.matrix is None or not image_input(given.images).projected:
        return torch.zeros(0, EMBEDDING_DIM), none, none
    wanted = np.concatenate([given.rows.target_row[rows], given.rows.history_row[here]])
    distinct, which = np.unique(np.append(wanted, -1), return_inverse=True)  # -1 sorts first: no vector
    vectors = np.vstack([np.zeros((1, EMBEDDING_DIM), dtype=np.float32), given.matrix[distinct[1:]]])
    which = which[:-1].astype(np.int64)
    return torch.from_numpy(vectors), torch.from_numpy(which[: len(rows)]), torch.from_numpy(which[len(rows) :])


def _tensor(*columns: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.column_stack(columns).astype(np.int64))


# --- training -------------------------------------------------------------------------------------------------------


def _train(
    model: NeuralModel,
    train: ModelInput,
    valid: ModelInput,
    clicked: tuple[Floats, Floats],
    *,
    config: NeuralConfig,
    seed: int,
    progress: Progress | None,
    started: bool,
) -> list[Mapping[str, float]]:
    """Fit the network in place and leave the weights of the best check in it; returns the checks.

    started: whether the weights as they are count as a check.
    """
    rng = np.random.default_rng(seed)
    network, optimizer = (
        model.network,
        torch.optim.AdamW(model.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay),
    )
    parts = _schedule(len(train), config, rng)
    task = progress.add_task(f"{KIND}/{train.images}", total=sum(map(len, parts)), figures="") if progress else None
    history: list[Mapping[str, float]] = []
    best = logloss(clicked[1], model.score(valid)) if started and len(valid) else float("inf")
    kept, begun, seen = copy.deepcopy(network.state_dict()), time.monotonic(), 0
    for part in parts:
        network.train()
        losses = []
        for rows in part:
            hide = rng.random(model.widths.items + 1) < UNKNOWN_SHARE
            batch = batch_of(train, model.state, rows, hide)
            loss = F.binary_cross_entropy_with_logits(network(batch), torch.from_numpy(clicked[0][rows]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            seen += len(rows)
            if progress and task is not None:
                rate = seen / max(time.monotonic() - begun, 1e-9)
                progress.update(task, advance=1, figures=f"loss {np.mean(losses[-50:]):.5f}  {rate:,.0f} rows/s")
        valid_loss = logloss(clicked[1], model.score(valid)) if len(valid) else float(np.mean(losses))
        history.append({"step": len(history) + 1, "loss": float(np.mean(losses)), "valid_logloss": valid_loss})
        if valid_loss < best:
            best, kept = valid_loss, copy.deepcopy(network.state_dict())
        elif len(history) - 1 - int(np.argmin([h["valid_logloss"] for h in history])) >= CHECKS_AN_EPOCH:
            break
    network.load_state_dict(kept)
    network.eval()
    return history


def _schedule(rows: int, config: NeuralConfig, rng: np.random.Generator) -> list[list[NDArray[np.int64]]]:
    """The batches between two checks of the validation loss, for every check of every epoch."""
    parts: list[list[NDArray[np.int64]]] = []
    for _ in range(config.epochs):
        order = rng.permutation(rows)
        batches = [order[i : i + config.batch_rows] for i in range(0, rows, config.batch_rows)]
        cut = -(-len(batches) // CHECKS_AN_EPOCH)
        parts += [batches[i : i + cut] for i in range(0, len(batches), cut)]
    return parts


def _standardise(network: TargetAttention, dense: Floats) -> None:
    """Set the medians and scales of the numbers from the training rows; a column without a value stays as it is."""
    known = ~np.isnan(dense)
    some = known.any(axis=0)
    median, scale = np.zeros(dense.shape[1]), np.ones(dense.shape[1])
    median[some] = np.nanmedian(dense[:, some], axis=0)
    scale[some] = np.maximum(np.nanstd(dense[:, some], axis=0), 1e-6)
    network.median.copy_(torch.from_numpy(median))
    network.scale.copy_(torch.from_numpy(scale))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch on so many threads: their number is part of what makes sums repeatable."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
