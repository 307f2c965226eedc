"""The methods of pre-training by name: what each minimises over the same encoder and the same page views."""

from collections.abc import Callable
from dataclasses import replace

from model.courier.config import CourierConfig, own_configs
from model.courier.data.batches import PageViews
from model.courier.losses import baseline_objectives as baselines
from model.courier.losses.courier_objective import behaviour_objective
from model.courier.losses.objective import Objective
from model.courier.network.encoder import Encoder, build_encoder
from model.errors import CourierError
from model.settings import flatten

METHODS: dict[str, Callable[[CourierConfig, Encoder, PageViews], Objective]] = {
    "courier": behaviour_objective,
    "imagenet": baselines.untrained,
    "simclr": baselines.simclr,
    "simsiam": baselines.simsiam,
    "clip": baselines.clip,
    "random": baselines.untrained,
}
UNTRAINED = ("imagenet", "random")


def settle(config: CourierConfig) -> CourierConfig:
    """The config that a run of `config.method` really follows, and that is saved beside its weights.

    Where nothing is trained the vectors are the features' leading components, as wide as an embedding; `random` has
    random weights. Raises CourierError for an unknown method, `imagenet` without a warm start, or a choice that changes
    another method or frozen features alone.
    """
    if config.method not in METHODS:
        raise CourierError(f"unknown method {config.method!r}: choose one of {', '.join(METHODS)}")
    default, chosen = flatten(CourierConfig()), flatten(config)
    changed = [name for name, value in chosen.items() if value != default[name]]
    for name in changed:
        if (method := name.partition(".")[0]) in own_configs(config) and method != config.method:
            raise CourierError(f"{name} changes method {method} alone, not {config.method}: leave it out")
    for name in ("basis", "courier.head_start"):  # of components, which a trained backbone's features don't have
        if name in changed and config.trainable != "head":
            raise CourierError(f"{name} is of frozen features, and trainable is {config.trainable}: leave it out")
    if config.method == "imagenet" and config.backbone_weights == "random":
        raise CourierError(
            "method imagenet is the warm start itself, but backbone_weights is random: say method random"
        )
    if config.method not in UNTRAINED:
        return config
    weights = "random" if config.method == "random" else config.backbone_weights
    return replace(config, backbone_weights=weights, trainable="head", head="linear", feature_components=config.width)


def build_objective(config: CourierConfig, page_views: PageViews) -> Objective:
    """The objective of `config.method` around a new encoder with random weights.

    page_views: what it will be trained on.  Raises CourierError for an unknown method or choice.
    """
    config = settle(config)
    encoder = build_encoder(config)
    if config.trainable == "head":
        encoder.freeze_backbone()
    encoder.freeze_parts()
    return METHODS[config.method](config, encoder, page_views)
