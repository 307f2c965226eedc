"""Pre-train the image encoder on behaviour: the pretrain stage, on one process or, under torchrun, on many."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from model import artifact, strict_json
from model.artifact import Manifest
from model.courier.config import CourierConfig
from model.courier.data.batches import PADDING, Batch, PageViews, check_history, rows_of_step, take_batch
from model.courier.data.loader import BatchTensors
from model.courier.data.page_views import read_page_views
from model.courier.losses.objective import Objective
from model.courier.network.backbones import warm_start
from model.courier.network.encoder import KIND, feature_batches, save_encoder
from model.courier.training import collapse_metrics
from model.courier.training.array_cache import ArrayCache, digest
from model.courier.training.card import card_of
from model.courier.training.checkpoint import Checkpoint, checkpoint_folder, identity_of, sweep
from model.courier.training.methods import build_objective, settle
from model.courier.training.process_group import ProcessGroup, process_group
from model.courier.training.sources import build_source, decoded_images, frozen_features
from model.courier.training.trainer import Trained, Trainer
from model.errors import CourierError
from model.settings import from_mapping, parse_settings, unflatten
from model.space import Preprocessing

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

OBJECTIVE = "objective.safetensors"  # what was trained beside the encoder
CURVE = "loss.jsonl"
MEASURED_IMAGES = 4000  # of a larger catalogue those that some rows show: the figures are means
MEASURED_ROWS = 400  # of at most ten images each
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
    CheckpointMismatch where another unfinished run holds the folder, and Collapsed where the result maps all images to
    nearly one place.
    """
    config = settle(config)
    behaviour = artifact.read(sequences, kind="sequences")
    splits = behaviour.facts["splits"]
    artifact.read(images, kind="images")
    check_history(config.history, behaviour)
    inputs = artifact.digests({"sequences": sequences, "images/pictures": images})
    page_views = read_page_views(sequences, images, history=config.history)
    counts = page_views.counts
    mostly_lost = 2 * counts.page_view_items_without_image > counts.page_view_items_read
    (log.warning if mostly_lost else log.info)("page_views_read", page_views=len(page_views), **asdict(counts))
    require_enough(config, page_views, behaviour)
    preprocessing = Preprocessing(size=config.image_size)
    begun = time.perf_counter()
    with process_group() as group:
        identity = identity_of(asdict(config), inputs, group.count, group.device.type)
        checkpoint = Checkpoint(checkpoint_folder(out), identity, checkpoint_every)
        checkpoint.read()  # refused before anything is computed
        if group.rank == 0:
            checkpoint.sweep()
            if shared:
                sweep(shared)
        seen = {"images": inputs["images/pictures"], "image_ids": page_views.image_ids, "device": group.device.type}
        cache = ArrayCache(shared or checkpoint.folder, digest(**seen), group)
        pixels = decoded_images(images, page_views, cache)
        trained = train(page_views, pixels, preprocessing, config, group, cache, checkpoint)
        took = time.perf_counter() - begun
        figures = _collapse_metrics(trained.objective, page_views, pixels, preprocessing, config, cache)
        if group.rank == 0:
            if collapse_metrics.is_collapsed(figures, len(page_views.image_ids)):
                checkpoint.remove()  # a run that goes on from it would end here again
            collapse_metrics.refuse_collapse(figures, len(page_views.image_ids))
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
                    **asdict(counts),  # read = what is used and what is without an image
                    "page_views": len(page_views),
                    "page_view_items": int((page_views.page != PADDING).sum()),
                    "distinct_images": len(page_views.image_ids),
                    "collapse": figures.as_facts(),
                    "card": card_of(config, page_views, splits, (trained.curve or [{}])[-1], figures),
                }
            checkpoint.remove()
        group.wait()  # nobody reads the artifact before it is there
    return artifact.read(out, kind=KIND)


def train(
    page_views: PageViews,
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    config: CourierConfig,
    group: ProcessGroup,
    cache: ArrayCache,
    checkpoint: Checkpoint,
) -> Trained:
    """Train from the config's seed; the global random state is left alone.

    pixels: (N, S, S, 3), images of `page_views`.  cache: for what is computed once of these pixels.  The run goes on
    from where the checkpoint is.
    """
    _check(config, group.count)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        objective = build_objective(config, page_views).to(group.device)
        warm_start(objective.encoder.backbone, config.backbone_weights)
        source = build_source(objective, page_views, pixels, preprocessing, config, group, cache)
        torch.manual_seed(config.seed + group.rank)  # dropout differs from process to process
        return Trainer(objective, config, group).run(
            lambda step: _local_batch(page_views, config, step, group), source, checkpoint
        )


def require_enough(config: CourierConfig, page_views: PageViews, sequences: Manifest) -> None:
    """Raises CourierError where these page views teach nothing."""
    read, images = page_views.counts.page_views_read, len(page_views.image_ids)
    if len(page_views) < 2:
        raise CourierError(
            f"{len(page_views)} of {read} page views of the training period shows an item with a usable image, and the "
            "contrast needs at least 2: bring more page views, or see reports/coverage.html"
        )
    if images < 2:
        raise CourierError(
            f"the {len(page_views)} page views of the training period show {images} distinct image, and an encoder "
            "learns to tell images apart: bring items with pictures of their own"
        )
    if config.method == "courier" and not page_views.clicked.any() and (page_views.history == PADDING).all():
        raise CourierError(
            f"none of the {len(page_views)} page views of the training period was clicked or comes after a click, and "
            f"courier learns from clicks: {_why_no_click(sequences.facts)}"
        )


def _why_no_click(facts: Mapping[str, Any]) -> str:
    if not facts["clicks"]:
        return "no event is a click; check the raw events' event_type"
    return (
        f"of {facts['clicks']} clicks {facts['unmatched_clicks']} name no page view that shows their item; check the "
        "clicks' request_id and item_id"
    )


def _check(config: CourierConfig, processes: int) -> None:
    if config.batch_rows % processes:
        raise CourierError(
            f"batch_rows {config.batch_rows} can't be split over {processes} processes: choose a multiple"
        )
    if min(config.steps, config.batch_rows) < 1:
        raise CourierError(f"steps {config.steps} and batch_rows {config.batch_rows} must be at least 1")


def _local_batch(page_views: PageViews, config: CourierConfig, step: int, group: ProcessGroup) -> Batch:
    rows = rows_of_step(len(page_views), config.batch_rows, step, config.seed)
    return take_batch(page_views, rows.reshape(group.count, -1)[group.rank])


def _collapse_metrics(
    objective: Objective,
    page_views: PageViews,
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    config: CourierConfig,
    cache: ArrayCache,
) -> collapse_metrics.CollapseMetrics:
    """Figures over the training images; positive pairs are a clicked image and the user's click before it."""
    encoder = objective.encoder.eval()
    chosen, rows = _measured(page_views)
    if config.trainable == "head":
        features = frozen_features(objective, pixels, preprocessing, cache)

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
    row, column = np.nonzero(page_views.clicked)
    pairs = np.stack([place[page_views.page[row, column]], place[page_views.history[row, 0]]], axis=1)
    figures = collapse_metrics.measure(vectors, torch.from_numpy(pairs[(pairs >= 0).all(1)]))
    device = encoder.feature_mean.device
    batch = take_batch(page_views, rows)
    of_rows = vectors[torch.from_numpy(place[batch.images])].to(device)
    return replace(figures, attention_entropy=objective.attention_entropy(of_rows, BatchTensors.of(batch, device)))


def _measured(page_views: PageViews) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the images that are measured, and of rows that show no others: all, or those of some rows."""
    images, rows = len(page_views.image_ids), len(page_views)
    if images <= MEASURED_IMAGES:
        return np.arange(images), np.arange(rows)[:: -(-rows // MEASURED_ROWS)]
    some = np.linspace(0, rows - 1, min(rows, MEASURED_ROWS)).astype(np.int64)
    return take_batch(page_views, some).images, some


def _save(trained: Trained, folder: Path, preprocessing: Preprocessing) -> dict[str, Any]:
    facts = save_encoder(trained.objective.encoder, folder, preprocessing)
    state = {name: t.cpu().contiguous() for name, t in trained.objective.state_dict().items()}
    save_file({name: t for name, t in state.items() if not name.startswith("encoder.")}, folder / OBJECTIVE)
    (folder / CURVE).write_text("".join(strict_json.dumps(line) + "\n" for line in trained.curve), "utf-8")
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
    print(strict_json.dumps(dict(manifest.facts), indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    app(args=argv)


if __name__ == "__main__":
    main()
