"""A generated world's true style labels in place of cluster IDs: what perfect visual clusters would give."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa

from feature_repo.contract import ITEM_KEY
from model.ctr.inputs.cluster_id import CLUSTER_ID, COLUMN, with_cluster_ids
from model.ctr.inputs.columns import sorted_codes
from model.ctr.inputs.encoded import BASE_FEATURES
from model.ctr.inputs.image_input import ModelInput

TRUE_STYLE: Final = replace(CLUSTER_ID, name="true_style", title="true style", by_default=False)


def with_true_labels(rows: pa.Table, truth_items: pa.Table, label: str) -> pa.Table:
    """The rows with the true `label` of each item, as a number, where its cluster ID was; -1 for an unlabelled item.

    truth_items: item_id and a column named `label`.
    """
    codes = pa.array(sorted_codes(truth_items.column(label)), pa.int32())
    return with_cluster_ids(rows, pa.table({ITEM_KEY: truth_items.column("item_id"), COLUMN: codes}))


def side_by_side(inputs: Mapping[str, ModelInput]) -> ModelInput:
    """One model input that holds what several labels say: the first as the cluster ID, of all the match columns.

    inputs: label -> the same rows with that label in place of the cluster ID, as with_images(..., "true_style") gives.
    """
    first, *others = inputs.items()
    plain = len(BASE_FEATURES)
    names = (*first[1].names, *(f"{label}_{name}" for label, given in others for name in given.names[plain:]))
    dense = np.hstack([first[1].dense, *(given.dense[:, plain:] for _, given in others)])
    return replace(first[1], names=names, dense=dense)
