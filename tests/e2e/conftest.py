"""A small road walked by the pipeline's own stages, for what looks at whole roads."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import ClusterConfig, SequencesConfig
from jobs.sources.raw_folder import schema
from model import artifact


@pytest.fixture(scope="session")
def walked(shop_maker, tmp_path_factory) -> dict[str, Path]:
    """The folder of each stage that the leak checks read, of a clean road; read-only."""
    from feature_repo.contract import EVENTS
    from jobs import cluster, features, materialize, training_rows
    from jobs.spark import behavior_sequences

    workspace = tmp_path_factory.mktemp("walked")
    shop = shop_maker(workspace / "shop", users=6, requests=150)
    raw = workspace / "raw"
    raw.mkdir()
    events = [
        *({**row, "event_time": row["request_time"], "event_type": "impression"} for row in shop.impressions),
        *({**row, "event_type": "click"} for row in shop.clicks),
    ]
    pq.write_table(pa.Table.from_pylist(events, schema=schema(EVENTS)), raw / "events.parquet")
    out = {
        name: workspace / name / "k" for name in ("sequences", "cluster", "features", "materialize", "rows", "pretrain")
    }
    behavior_sequences.build(raw=raw, raw_digest="raw", out=out["sequences"], config=SequencesConfig())
    cluster.build(
        embed=shop.embed, sequences=out["sequences"], out=out["cluster"], config=ClusterConfig(clusters=4, iterations=3)
    )
    side = {"sequences": out["sequences"], "images": shop.images, "embed": shop.embed, "cluster": out["cluster"]}
    features.build(**side, out=out["features"])
    materialize.build(features=out["features"], workspace=workspace, out=out["materialize"])
    loaded = {name: out[name] for name in ("sequences", "features", "materialize")}
    training_rows.build(**loaded, workspace=workspace, out=out["rows"])
    splits = artifact.read(out["sequences"], kind="sequences").facts["splits"]
    with artifact.write(out["pretrain"], kind="pretrain", inputs={}, config={}) as draft:
        draft.facts = {"trained_until": splits["valid_start"]}
    return side | out
