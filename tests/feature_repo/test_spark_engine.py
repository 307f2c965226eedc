"""Feast's own Spark compute engine loads our packed online store from our offline tables."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from feature_repo.contract import CODEBOOK_KEY, SPACE_KEY, VIEWS

REPOSITORY = Path(__file__).parents[2] / "feature_repo"
VERSIONS = {SPACE_KEY: "s0123456789ab", CODEBOOK_KEY: "c0123456789ab"}  # of the small shop
ENGINE = {
    "type": "spark.engine",
    "spark_conf": {"spark.master": "local[2]", "spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC"},
}


def known(values):
    """The values, null in place of NaN: Feast's materialize, by whichever engine, writes NaN as null."""
    return [None if value != value else value for value in values]


@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_feasts_spark_engine_loads_what_courier_materialize_loads(shop_maker, tmp_path, monkeypatch):
    from feature_repo.definitions import feast_objects, open_store
    from jobs.features import materialize

    shop = shop_maker(tmp_path / "shop")
    materialize.build(features=shop.features, workspace=shop.workspace, out=shop.workspace / "materialize" / "k")
    settings = yaml.safe_load((REPOSITORY / "feature_store.yaml").read_text("utf-8"))
    settings["batch_engine"] = ENGINE
    settings["online_store"]["connection_string"] = f"sqlite:///{tmp_path}/packed.db"
    by_spark = tmp_path / "feature_store.yaml"
    by_spark.write_text(yaml.safe_dump(settings), "utf-8")
    ours = open_store(shop.workspace)
    environment = {
        "FEAST_FS_YAML_FILE_PATH": str(by_spark),
        "COURIER_WORKSPACE": str(shop.workspace),
        "PYSPARK_PYTHON": sys.executable,  # its workers import feast
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    theirs = open_store(shop.workspace)
    assert theirs.config.batch_engine.type == "spark.engine"
    theirs.apply(list(feast_objects(shop.workspace).values()))
    feast = [sys.executable, "-m", "feast.cli.cli", "-c", str(REPOSITORY)]
    end = shop.as_of + timedelta(days=1)
    period = [(end - timedelta(days=400)).isoformat(), end.isoformat()]
    done = subprocess.run([*feast, "materialize", *period], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    users = sorted({row["user_id"] for row in shop.impressions})
    items = [row["item_id"] for row in shop.items]
    rows = {"user_id": [{"user_id": user} for user in users], "item_id": [{"item_id": item} for item in items]}
    for view in VIEWS:
        versions = {key: VERSIONS[key] for key in view.keys[1:]}
        keys = [row | versions for row in rows[view.keys[0]]]
        asked = [f"{view.name}:{feature.name}" for feature in view.features]
        answers = [store.get_online_features(asked, keys).to_dict() for store in (ours, theirs)]
        for feature in view.features:
            loaded, by_feast = (known(answer[feature.name]) for answer in answers)
            assert by_feast == loaded
        assert any(value is not None for value in answers[1][view.features[0].name])
