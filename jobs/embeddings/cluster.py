"""Give every item with a vector its cluster ID in the codebooks: the cluster stage."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from jobs.embeddings.codebook import read_codebooks
from model import artifact
from model.artifact import ArtifactMismatch, Manifest
from model.cluster_id import packed
from model.code_statistics import collisions, entropy, gini
from model.released_items import FOLDER, write_lookup

log = structlog.get_logger()

KIND = "cluster"
ITEMS = "items.parquet"


def build(*, embed: Path, codebook: Path, out: Path) -> Manifest:
    """Write every usable item's cluster ID, as a table and as what a server maps into its memory.

    Facts: of each codebook how many clusters hold an item (occupied), the share of the largest, Gini and entropy (bits)
    of how many items they hold; collisions: the share of distinct images whose whole ID another image has too.
    Raises ArtifactMissing for its inputs, ArtifactMismatch where they are of two spaces.
    """
    space_id = artifact.read(embed, kind="embed").facts["space_id"]
    codebooks, fitted = read_codebooks(codebook)
    if fitted.facts["space_id"] != space_id:
        raise ArtifactMismatch(
            f"{codebook} is of space {fitted.facts['space_id']}, {embed} of {space_id}: rebuild the codebook"
        )
    begun = time.monotonic()
    items = pq.read_table(embed / "items.parquet", columns=["item_id", "row"])
    image_codes = codebooks.codes(np.load(embed / "vectors.npy"))
    codes = image_codes[items["row"].to_numpy()]
    counts = [level.occupancy(codes[:, place]) for place, level in enumerate(codebooks.levels)]
    inputs = artifact.digests({"embed": embed, "codebook": codebook})
    with artifact.write(out, kind=KIND, inputs=inputs, config={}) as draft:
        pq.write_table(pa.table({"item_id": items["item_id"], "cluster_id": packed(codes)}), draft.path / ITEMS)
        write_lookup(draft.path / FOLDER, items["item_id"].combine_chunks(), packed(codes), items["row"].to_numpy())
        draft.facts |= {
            "space_id": space_id,
            "codebook_id": fitted.facts["codebook_id"],
            "codebooks": fitted.facts["codebooks"],
            "items": len(items),
            "occupied": [int((count > 0).sum()) for count in counts],
            "largest_share": [round(float(count.max() / count.sum()), 4) for count in counts],
            "gini": [round(gini(count), 4) for count in counts],
            "entropy": [round(entropy(count), 4) for count in counts],
            "collisions": round(collisions(packed(image_codes)), 4),
        }
    log.info("items_clustered", **draft.facts, seconds=round(time.monotonic() - begun, 1))
    return artifact.read(out, kind=KIND)
