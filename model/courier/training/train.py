"""Pre-train the image encoder on behaviour: the pretrain stage, on one process or, under torchrun, on many."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from model import artifact
from model.artifact import Manifest
from model.courier.config import CourierConfig
from model.courier.data.batches import Batch, PageViews, check_history, rows_of_step, take_batch
from model.courier.data.crops import VERSIONS, FeatureViews, PixelViews, version_batches
from model.courier.data.loader import Activations, Features, Pixels, Source
from model.courier.data.page_views import read_page_views
from model.courier.data.stored_images import decode_images, image_size
from model.courier.losses.objective import BatchTensors, Objective
from model.courier.network.backbones import warm_start
from model.courier.network.encoder import KIND, activation_batches, feature_batches, save_encoder
from model.courier.progress import watched
from model.courier.training import collapse_metrics as geometry
from model.courier.training.array_cache import Fill, Kept, digest, digest_of_tensor, digest_of_weights
from model.courier.training.card import card_of
from model.courier.training.checkpoint import Checkpoint, checkpoint_folder, identity_of, sweep
from model.courier.training.linear_start import prepare
from model.courier.training.methods import build_objective, settle
from model.courier.training.process_group import Processes, running
from model.courier.training.trainer import Fit, Trained
from model.errors import CourierError
from model.settings import from_mapping, parse_settings, unflatten
from model.space import Preprocessing

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

OBJECTIVE = "objective.safetensors"  # what was trained beside the encoder
CURVE = "loss.jsonl"
STANDARD_IMAGES = 512  # about so many give a trained backbone's starting mean and deviation
GEOMETRY_IMAGES = 4000  # of a larger catalogue those that some rows show: the figures are means
GEOMETRY_ROWS = 400  # of at most ten images each
CHECKPOINT_EVERY = 100  # steps


def build(
    *,
    sequences: Path,
    images: Path,
    out: Path,
    config: CourierConfig,
    checkpoint_every: int = CHECKPOINT_EVERY,
    shared: Path | None = None,
) -> Manifest:
    """Train on the page views of the training period and write the pretrain artifact.

    A run that was stopped goes on from its last checkpoint when it is asked for again; OUT.checkpoint holds it, and is
    gone when the artifact is there.
    shared: a folder where what does not depend on the training (decoded images, what frozen parts of a backbone make of
    them) stays for other runs, which one at a time may use it; without, it is computed once for this run.
    Raises ArtifactMissing or ArtifactMismatch for its inputs, CourierError for a config or data it can't train on,
    CheckpointMismatch where another unfinished run holds the folder, and geometry.Collapsed where the result maps all
    images to nearly one place.
    """
    config = settle(config)
    behaviour = artifact.read(sequences, kind="sequences")
    splits = behaviour.facts["splits"]
    artifact.read(images, kind="images")
    check_history(config.history, behaviour)
    inputs = artifact.digests({"sequences": sequences, "images/pictures": images})
    views = read_page_views(sequences, images, history=config.history)
    preprocessing = Preprocessing(size=config.image_size)
    begun = time.perf_counter()
    with running() as processes:
        identity = identity_of(asdict(config), inputs, processes.count, processes.device.type)
        checkpoint = Checkpoint(checkpoint_folder(out), identity, checkpoint_every)
        checkpoint.read()  # refused before anything is computed
        if processes.rank == 0:
            checkpoint.sweep()
            if shared:
                sweep(shared)
        seen = {"images": inputs["images/pictures"], "image_ids": views.image_ids, "device": processes.device.type}
        kept = Kept(shared or checkpoint.folder, digest(**seen), processes)
        pixels = _pixels(images, views, kept)
        trained = train(views, pixels, preprocessing, config, processes, kept, checkpoint)
        took = time.perf_counter() - begun
        figures = _geometry(trained.objective, views, pixels, preprocessing, config, kept)
        if processes.rank == 0:
            if geometry.is_collapsed(figures, len(views.image_ids)):
                checkpoint.remove()  # a run that goes on from it would end here again
            geometry.refuse_collapse(figures, len(views.image_ids))
            with artifact.write(out, kind=KIND, inputs=inputs, config=asdict(config)) as draft:
                draft.facts |= _save(trained, draft.path, preprocessing)
                draft.notes |= _speeds(trained)
                # decoding, features and steps, less what lay in `shared`; since the last start of the run
                draft.notes["wall_seconds"] = round(took, 3)
                draft.log_files = (CURVE,)
                draft.facts |= {
                    "encoder": f"{config.method}-{config.backbone}",
                    "steps": config.steps if trained.objective.terms else 0,
                    "trained_from": splits["start"],
                    "trained_until": splits["valid_start"],
                    "page_views": len(views),
                    "distinct_images": len(views.image_ids),
                    "collapse": figures.as_facts(),
                    "card": card_of(config, views, splits, (trained.curve or [{}])[-1], figures),
                }
            checkpoint.remove()
        processes.wait()  # nobody reads the artifact before it is there
    return artifact.read(out, kind=KIND)


def train(
    views: PageViews,
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    config: CourierConfig,
    processes: Processes,
    kept: Kept,
    checkpoint: Checkpoint,
) -> Trained:
    """Train from the config's seed; the global random state is left alone. pixels: (N, S, S, 3), images of `views`.

    kept: where lies what is computed once of these pixels. The run goes on from where the checkpoint is.
    """
    _check(config, len(views), processes.count)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        objective = build_objective(config, views).to(processes.device)
        warm_start(objective.encoder.backbone, config.backbone_weights)
        source = _source(objective, views, pixels, preprocessing, config, processes, kept)
        torch.manual_seed(config.seed + processes.rank)  # dropout differs from process to process
        return Fit(objective, config, processes).run(
            lambda step: _local_batch(views, config, step, processes), source, checkpoint
        )


def _check(config: CourierConfig, rows: int, processes: int) -> None:
    if config.batch_rows % processes:
        raise CourierError(
            f"batch_rows {config.batch_rows} can't be split over {processes} processes: choose a multiple"
        )
    if min(config.steps, config.batch_rows) < 1:
        raise CourierError(f"steps {config.steps} and batch_rows {config.batch_rows} must be at least 1")
    if rows < 2:
        raise CourierError(f"{rows} page view to train on: the contrast needs at least 2")


def _pixels(images: Path, views: PageViews, kept: Kept) -> npt.NDArray[np.uint8]:
    """The images of `views`, decoded once, into a file that is mapped: a catalogue may be larger than memory."""
    size = image_size(images)
    shape = (len(views.image_ids), size, size, 3)
    return kept.array("pixels", shape, np.uint8, partial(decode_images, images, views.image_ids))


def _source(
    objective: Objective,
    views: PageViews,
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    config: CourierConfig,
    processes: Processes,
    kept: Kept,
) -> Source:
    """What gives a step its input: features or activations computed once, or the images themselves, or their views."""
    encoder, drawn = objective.encoder, {"views": objective.views, "seed": config.seed, "rank": processes.rank}
    if config.trainable == "head":
        features = torch.from_numpy(_features(objective, pixels, preprocessing, kept)).to(processes.device)
        standard = prepare(encoder, features, views, config)
        if objective.views:
            shape = (VERSIONS * len(pixels), standard.shape[1])
            fill = _filled(lambda: version_batches(encoder, pixels, preprocessing, config.seed), "views", shape[0])
            basis = [digest_of_tensor(t) for t in (encoder.feature_mean, encoder.feature_scale, encoder.feature_basis)]
            of_seed = _of_backbone(objective, preprocessing, kept).of(seed=config.seed, basis=basis, versions=VERSIONS)
            versions = torch.from_numpy(of_seed.array("views", shape, np.float32, fill)).to(processes.device)
            return FeatureViews(versions.reshape(VERSIONS, len(pixels), -1), **drawn)
        return Features(standard)  # a fraction of the features' width: a step costs so much less
    # Pooled activations share a large mean: left in, all vectors start at nearly one place and may stay there.
    sample = pixels[:: max(1, len(pixels) // STANDARD_IMAGES)]
    encoder.standardise_by(torch.cat(list(feature_batches(encoder, sample, preprocessing))))
    if objective.views:
        return PixelViews(pixels, preprocessing, encoder, **drawn)
    if config.trainable == "all":
        return Pixels(pixels, preprocessing)
    first = next(activation_batches(encoder, pixels[:1], preprocessing))
    fill = _filled(lambda: activation_batches(encoder, pixels, preprocessing), "activations", len(pixels))
    of_parts = _of_backbone(objective, preprocessing, kept).of(parts=encoder.frozen_parts)
    return Activations(of_parts.array("activations", (len(pixels), *first.shape[1:]), np.float32, fill))


def _features(
    objective: Objective, pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing, kept: Kept
) -> npt.NDArray[np.float32]:
    """What a frozen backbone makes of the images: (N, feature_width)."""
    encoder = objective.encoder
    fill = _filled(lambda: feature_batches(encoder, pixels, preprocessing), "features", len(pixels))
    of_backbone = _of_backbone(objective, preprocessing, kept)
    return of_backbone.array("features", (len(pixels), encoder.feature_width), np.float32, fill)


def _of_backbone(objective: Objective, preprocessing: Preprocessing, kept: Kept) -> Kept:
    """For arrays that a backbone, as it is now, makes of the images."""
    encoder = objective.encoder
    weights = digest_of_weights(encoder.backbone)
    return kept.of(weights=weights, pooling=encoder.pooling, preprocessing=asdict(preprocessing))


def _filled(parts: Callable[[], Iterator[Any]], what: str, images: int) -> Fill:
    """What writes these parts one after the other, under a bar. Tensors or arrays, one entry an image."""

    def fill(array: npt.NDArray[Any]) -> None:
        start = 0
        for part in watched(parts(), what, images):
            array[start : start + len(part)] = part.cpu() if isinstance(part, Tensor) else part
            start += len(part)

    return fill


def _local_batch(views: PageViews, config: CourierConfig, step: int, processes: Processes) -> Batch:
    rows = rows_of_step(len(views), config.batch_rows, step, config.seed)
    return take_batch(views, rows.reshape(processes.count, -1)[processes.rank])


def _geometry(
    objective: Objective,
    views: PageViews,
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    config: CourierConfig,
    kept: Kept,
) -> geometry.Geometry:
    """Figures over the training images; positive pairs are a clicked image and the user's click before it."""
    encoder = objective.encoder.eval()
    chosen, rows = _measured(views)
    if config.trainable == "head":
        features = _features(objective, pixels, preprocessing, kept)

        def features_of(part: npt.NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(features[part]).to(encoder.feature_mean.device)
    else:

        def features_of(part: npt.NDArray[np.int64]) -> Tensor:
            return torch.cat(list(feature_batches(encoder, pixels[part], preprocessing)))

    with torch.inference_mode():
        parts = np.array_split(chosen, -(-len(chosen) // 64))
        vectors = torch.cat([encoder.project(features_of(part)).cpu() for part in parts])
    place = np.full(len(pixels) + 1, -1, np.int64)  # the last place answers for padding
    place[chosen] = np.arange(len(chosen))
    row, column = np.nonzero(views.clicked)
    pairs = np.stack([place[views.page[row, column]], place[views.history[row, 0]]], axis=1)
    figures = geometry.measure(vectors, torch.from_numpy(pairs[(pairs >= 0).all(1)]))
    device = encoder.feature_mean.device
    batch = take_batch(views, rows)
    of_rows = vectors[torch.from_numpy(place[batch.images])].to(device)
    return replace(figures, attention_entropy=objective.attention_entropy(of_rows, BatchTensors.of(batch, device)))


def _measured(views: PageViews) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the images that are measured, and of rows that show no others: all, or those of some rows."""
    images, rows = len(views.image_ids), len(views)
    if images <= GEOMETRY_IMAGES:
        return np.arange(images), np.arange(rows)[:: -(-rows // GEOMETRY_ROWS)]
    some = np.linspace(0, rows - 1, min(rows, GEOMETRY_ROWS)).astype(np.int64)
    return take_batch(views, some).images, some


def _save(trained: Trained, folder: Path, preprocessing: Preprocessing) -> dict[str, Any]:
    facts = save_encoder(trained.objective.encoder, folder, preprocessing)
    state = {name: t.cpu().contiguous() for name, t in trained.objective.state_dict().items()}
    save_file({name: t for name, t in state.items() if not name.startswith("encoder.")}, folder / OBJECTIVE)
    (folder / CURVE).write_text("".join(json.dumps(line) + "\n" for line in trained.curve))
    last = trained.curve[-1] if trained.curve else {}
    log.info("encoder_trained", seconds=round(trained.seconds, 1), space=facts["space_id"], **last)
    return facts | {"final_loss": last.get("loss")}


def _speeds(trained: Trained) -> dict[str, float]:
    return {
        "seconds": round(trained.seconds, 1),
        "images_per_second": round(trained.images / trained.seconds, 1),
        "loader_stall": round(trained.waited / trained.seconds, 4),
    }


@app.command()
def pretrain(
    sequences: Annotated[Path, typer.Option(help="the sequences artifact")],
    images: Annotated[Path, typer.Option(help="the images artifact")],
    out: Annotated[Path, typer.Option(help="where the pretrain artifact goes")],
    checkpoint_every: Annotated[
        int, typer.Option(help="steps between two checkpoints in OUT.checkpoint", min=1)
    ] = CHECKPOINT_EVERY,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="a setting's dotted name=value, as in courier.heads=8")
    ] = None,
) -> None:
    """Pre-train the image encoder on the training period's page views.

    The same command again goes on with a run that was stopped.
    """
    config = from_mapping(CourierConfig(), unflatten(parse_settings(CourierConfig(), setting or ())))
    manifest = build(sequences=sequences, images=images, out=out, config=config, checkpoint_every=checkpoint_every)
    print(json.dumps(dict(manifest.facts), indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    app(args=argv)


if __name__ == "__main__":
    main()
