"""Pre-train the image encoder on behaviour: the pretrain stage, on one process or, under torchrun, on many."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
import torch.distributed as dist
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import artifact
from model.artifact import Manifest
from model.courier import geometry
from model.courier.backbones import warm_start
from model.courier.batches import Batch, PageViews, read_page_views, rows_of_step, take_batch
from model.courier.config import CourierConfig
from model.courier.encoder import KIND, Encoder, build_encoder, feature_batches, normalise, save_encoder
from model.courier.images import load_images
from model.courier.linear_start import prepare
from model.courier.objective import BatchTensors, Objective
from model.courier.progress import Curve, watched
from model.space import Preprocessing

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

NEGATIVES = ("all", "category")
INTENTION = "intention.safetensors"
CURVE = "loss.jsonl"
STANDARD_IMAGES = 512  # about so many give a trained backbone's starting mean and deviation
GEOMETRY_IMAGES = 4000  # at most, evenly spaced: the figures are means, a singular value decomposition is not free


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves: the modules, the curve's lines, the seconds and the distinct images it took."""

    objective: Objective
    curve: list[dict[str, float]]
    seconds: float
    images: int


def build(*, sequences: Path, images: Path, out: Path, config: CourierConfig) -> Manifest:
    """Train on the page views of the training period and write the pretrain artifact.

    Raises ArtifactMissing or ArtifactMismatch for its inputs, ValueError for a config or data it can't train on, and
    geometry.Collapsed where the result maps all images to nearly one place.
    """
    splits = artifact.read(sequences, kind="sequences").facts["splits"]
    artifact.read(images, kind="images")
    views = read_page_views(sequences, images)
    _, pixels = load_images(images, views.image_ids)
    preprocessing = Preprocessing(size=config.image_size)
    with _processes() as processes:
        trained = train(views, pixels, preprocessing, config, processes)
        figures = _geometry(trained.objective.encoder, views, pixels, preprocessing)
        geometry.refuse_collapse(figures, len(views.image_ids))
        if processes.rank == 0:
            inputs = {"sequences": artifact.digest(sequences), "images": artifact.digest(images)}
            with artifact.write(out, kind=KIND, inputs=inputs, config=asdict(config)) as draft:
                draft.facts |= _save(trained, draft.path, preprocessing)
                draft.facts |= {
                    "encoder": f"courier-{config.backbone}",
                    "steps": config.steps,
                    "trained_from": splits["start"],
                    "trained_until": splits["valid_start"],
                    "page_views": len(views),
                    "distinct_images": len(views.image_ids),
                    "collapse": figures.as_facts(),
                }
        if processes.count > 1:
            dist.barrier()  # nobody reads the artifact before it is there
    return artifact.read(out, kind=KIND)


def train(
    views: PageViews,
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    config: CourierConfig,
    processes: Processes,
) -> Trained:
    """Train from the config's seed; the global random state is left alone. pixels: (N, S, S, 3), images of `views`."""
    _check(config, len(views), processes.count)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        objective = _objective(config).to(processes.device)
        warm_start(objective.encoder.backbone, config.backbone_weights)
        inputs = _inputs(objective.encoder, views, pixels, preprocessing, config, processes.device)
        torch.manual_seed(config.seed + processes.rank)  # dropout differs from process to process
        return _fit(objective, views, inputs, config, processes)


def learning_rate_at(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate: linear over the warm-up, then half a cosine down to 0 after the last step.

    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5, without restarts.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _check(config: CourierConfig, rows: int, processes: int) -> None:
    if config.batch_rows % processes:
        raise ValueError(f"batch_rows {config.batch_rows} can't be split over {processes} processes: choose a multiple")
    if min(config.steps, config.batch_rows) < 1:
        raise ValueError(f"steps {config.steps} and batch_rows {config.batch_rows} must be at least 1")
    if config.negatives not in NEGATIVES:
        raise ValueError(f"unknown negatives {config.negatives!r}: choose one of {', '.join(NEGATIVES)}")
    if rows < 2:
        raise ValueError(f"{rows} page view to train on: the contrast needs at least 2")


def _objective(config: CourierConfig) -> Objective:
    encoder = build_encoder(config)
    if config.trainable == "head":
        encoder.freeze_backbone()
    return Objective(
        encoder,
        width=config.width,
        heads=config.heads,
        value_maps=config.value_maps,
        temperature=config.temperature,
        mask_false_negatives=config.mask_false_negatives,
        within_category=config.negatives == "category",
        from_features=config.trainable == "head",
    )


def _inputs(
    encoder: Encoder,
    views: PageViews,
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    config: CourierConfig,
    device: torch.device,
) -> Callable[[npt.NDArray[np.int64]], Tensor]:
    """What gives a step its input: features computed once, or images normalised as they are asked for."""
    if config.trainable == "all":
        # Pooled activations share a large mean: left in, all vectors start at nearly one place and may stay there.
        sample = pixels[:: max(1, len(pixels) // STANDARD_IMAGES)]
        encoder.standardise_by(torch.cat(list(feature_batches(encoder, sample, preprocessing))))
        return lambda numbers: normalise(pixels[numbers], preprocessing).to(device)
    features = torch.cat(list(watched(feature_batches(encoder, pixels, preprocessing), "features", len(pixels))))
    standard = prepare(encoder, features, views, config)  # a fraction of the features' width: a step costs less
    return lambda numbers: standard[torch.from_numpy(numbers).to(device)]


def _fit(
    objective: Objective,
    views: PageViews,
    inputs: Callable[[npt.NDArray[np.int64]], Tensor],
    config: CourierConfig,
    processes: Processes,
) -> Trained:
    model: nn.Module = DistributedDataParallel(objective) if processes.count > 1 else objective
    trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_at(step, config.steps, config.warmup_steps)
    )
    weights = torch.tensor([config.weight_pv, config.weight_ucs, config.weight_click], device=processes.device)
    half = torch.autocast(processes.device.type, torch.bfloat16, enabled=processes.device.type == "cuda")
    model.train()
    curve = Curve(config.steps, silent=processes.rank != 0)
    with curve.bar:
        for step in range(config.steps):
            batch = _local_batch(views, config, step, processes)
            with half:
                losses = model(inputs(batch.images), BatchTensors.of(batch, processes.device))
            optimizer.zero_grad(set_to_none=True)
            (weights * losses).sum().backward()
            optimizer.step()
            schedule.step()
            curve.add(losses.detach(), weights, len(batch.images))
    objective.eval()
    return Trained(objective, curve.lines, curve.seconds, curve.images)


def _local_batch(views: PageViews, config: CourierConfig, step: int, processes: Processes) -> Batch:
    rows = rows_of_step(len(views), config.batch_rows, step, config.seed)
    return take_batch(views, rows.reshape(processes.count, -1)[processes.rank])


def _geometry(
    encoder: Encoder, views: PageViews, pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing
) -> geometry.Geometry:
    """Figures over the training images; positive pairs are a clicked image and the user's click before it."""
    chosen = np.linspace(0, len(pixels) - 1, min(len(pixels), GEOMETRY_IMAGES)).astype(np.int64)
    with torch.inference_mode():
        batches = feature_batches(encoder, pixels[chosen], preprocessing)
        vectors = torch.cat([encoder.project(features).cpu() for features in batches])
    place = np.full(len(pixels) + 1, -1, np.int64)  # the last place answers for padding
    place[chosen] = np.arange(len(chosen))
    row, column = np.nonzero(views.clicked)
    pairs = np.stack([place[views.page[row, column]], place[views.history[row, 0]]], axis=1)
    return geometry.measure(vectors, torch.from_numpy(pairs[(pairs >= 0).all(1)]))


def _save(trained: Trained, folder: Path, preprocessing: Preprocessing) -> dict[str, Any]:
    facts = save_encoder(trained.objective.encoder, folder, preprocessing)
    others = {"intention": trained.objective.intention, "click_head": trained.objective.click_head}
    state = {f"{part}.{name}": t.cpu() for part, module in others.items() for name, t in module.state_dict().items()}
    save_file(state, folder / INTENTION)
    (folder / CURVE).write_text("".join(json.dumps(line) + "\n" for line in trained.curve))
    log.info("encoder_trained", seconds=round(trained.seconds, 1), space=facts["space_id"], **trained.curve[-1])
    return facts | {
        "seconds": round(trained.seconds, 1),
        "images_per_second": round(trained.images / trained.seconds, 1),
        "final_loss": trained.curve[-1]["loss"],
    }


@contextmanager
def _processes() -> Iterator[Processes]:
    """This process among those torchrun started, or alone; one GPU each where there are any."""
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    if count == 1:
        yield Processes(0, 1, device)
        return
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`name=value` strings as CourierConfig fields of the right type. Raises ValueError for a bad name or value."""
    kinds: dict[str, Any] = {name: type(value) for name, value in asdict(CourierConfig()).items()}
    chosen: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in kinds:
            raise ValueError(f"unknown setting {name!r}: choose among {', '.join(kinds)}")
        try:
            chosen[name] = json.loads(value.lower()) is True if kinds[name] is bool else kinds[name](value)
        except ValueError:
            raise ValueError(f"setting {setting!r} is not a {kinds[name].__name__}: write {name}=<value>") from None
    return chosen


@app.command()
def pretrain(
    sequences: Annotated[Path, typer.Option(help="the sequences artifact")],
    images: Annotated[Path, typer.Option(help="the images artifact")],
    out: Annotated[Path, typer.Option(help="where the pretrain artifact goes")],
    setting: Annotated[list[str] | None, typer.Option("--set", help="name=value of a CourierConfig field")] = None,
) -> None:
    """Pre-train the image encoder on the training period's page views."""
    manifest = build(sequences=sequences, images=images, out=out, config=CourierConfig(**parse_settings(setting or [])))
    print(json.dumps(dict(manifest.facts), indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    app(args=argv)


if __name__ == "__main__":
    main()
