"""Page views that are replayed are the newest that the loaded features were made from; a server that fails is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.features import materialize
from jobs.features.parity.replay import ReplayFailed, newest_page_views, replay
from model import artifact
from model.artifact import ArtifactMissing


@pytest.fixture(scope="module")
def workspace(shop_maker: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop whose features name the sequences that they were made from, which another version lies beside."""
    shop = shop_maker(tmp_path_factory.mktemp("replay"))
    out = shop.workspace / "features" / "made"
    with artifact.write(
        out, kind="features", inputs=artifact.digests({"sequences": shop.sequences}), config={}
    ) as draft:
        draft.facts = dict(artifact.read(shop.features, kind="features").facts)
    with artifact.write(shop.workspace / "sequences" / "other", kind="sequences", inputs={}, config={}) as draft:
        (draft.path / "impressions").mkdir()
        pq.write_table(pa.table({"user_id": ["x"]}), draft.path / "impressions" / "part-0.parquet")
    materialize.point_sources(shop.workspace, out)
    return shop.workspace


def test_the_newest_page_views_are_replayed_each_with_all_its_items(workspace: Path) -> None:
    rows = pq.read_table(workspace / "sequences" / "k" / "impressions").to_pylist()
    shown: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        shown.setdefault((row["request_time"], row["request_id"], row["user_id"]), set()).add(row["item_id"])
    newest = sorted(shown, key=lambda one: (-one[0].timestamp(), one[1]))[:20]
    found = newest_page_views(workspace, 20)
    assert found == [(user, sorted(shown[at, request, user])) for at, request, user in newest]
    assert len(newest_page_views(workspace, 10**6)) == len(shown)


def test_features_whose_sequences_are_gone_have_no_page_views(workspace: Path, tmp_path: Path) -> None:
    materialize.point_sources(tmp_path, (workspace / "feast" / "sources").resolve())
    with pytest.raises(ArtifactMissing, match="holds no page views that its features were made from: run"):
        newest_page_views(tmp_path, 1)


def test_a_server_that_does_not_start_is_told_in_its_own_words(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(ReplayFailed, match=r"`courier serve` ended: look at courier: .* has no current release"):
        replay(workspace, tmp_path / "log", 1)
