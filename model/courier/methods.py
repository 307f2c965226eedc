"""The methods of pre-training by name: what each minimises over the same encoder and the same page views."""

from collections.abc import Callable

from model.courier.batches import PageViews
from model.courier.behaviour import behaviour_objective
from model.courier.config import CourierConfig
from model.courier.encoder import Encoder, build_encoder
from model.courier.objective import Objective

METHODS: dict[str, Callable[[CourierConfig, Encoder, PageViews], Objective]] = {"courier": behaviour_objective}


def build_objective(config: CourierConfig, views: PageViews) -> Objective:
    """The objective of `config.method` around a new encoder with random weights; views: what it will be trained on.

    Raises ValueError for an unknown method or choice.
    """
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}: choose one of {', '.join(METHODS)}")
    encoder = build_encoder(config)
    if config.trainable == "head":
        encoder.freeze_backbone()
    encoder.freeze_parts()
    return METHODS[config.method](config, encoder, views)
