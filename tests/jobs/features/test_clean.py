"""What has outlived its view's ttl leaves the online store, and is counted."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from feature_repo import store_settings
from feature_repo.contract import ITEM_CLUSTER, VIEWS
from feature_repo.online_views import Asked, open_views
from feature_repo.store_settings import FILE_VARIABLE
from jobs.features import clean
from jobs.features.offline import source_schema

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
def views(monkeypatch, tmp_path):
    """A store whose clusters hold for a day: an old one, and one of half a day."""
    expiring = replace(ITEM_CLUSTER, ttl=DAY)
    monkeypatch.setattr(store_settings, "VIEWS", [expiring if view is ITEM_CLUSTER else view for view in VIEWS])
    opened = open_views(tmp_path)
    for view in opened.views.values():
        opened.database.create(view.table)
    rows = [("old", "c", NOW - 2 * DAY, 1), ("young", "c", NOW - DAY / 2, 2)]
    schema = source_schema(ITEM_CLUSTER)
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
    opened.write(ITEM_CLUSTER, table.to_batches()[0])
    return opened


def clusters(views):
    asked = Asked((ITEM_CLUSTER,), {"item_id": ["old", "young"], "codebook_id": ["c", "c"]})
    return views.read([asked], as_of=NOW)[0]["cluster_id"].to_pylist()


def test_what_has_expired_is_deleted_counted_and_was_not_read_before(views, tmp_path, capsys):
    assert clusters(views) == [None, 2]
    assert views.count(ITEM_CLUSTER) == 2
    for expired in (1, 0):
        with pytest.raises(SystemExit, match="0"):
            clean.main(["--workspace", str(tmp_path)])
        deleted = json.loads(capsys.readouterr().out)["deleted"]
        assert deleted == {view.name: expired if view is ITEM_CLUSTER else None for view in VIEWS}
    assert views.count(ITEM_CLUSTER) == 1
    assert clusters(views) == [None, 2]


def test_one_of_feasts_own_stores_is_left_to_itself(tmp_path, monkeypatch):
    file = tmp_path / "feature_store.yaml"
    file.write_text("project: p\nonline_store: redis", "utf-8")
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    with pytest.raises(clean.CannotClean, match="Feast's own redis: set a ttl in that database"):
        clean.expired_deleted(tmp_path, as_of=NOW)
