"""The audit passes on honest artifacts, and each way of letting the future in fails the check that names it."""

import json
import shutil
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from feature_repo.arrow_types import TIME
from feature_repo.store_settings import REPOSITORY, read_settings
from jobs.config import CodebookConfig
from jobs.features.offline import connect, read_parquet
from jobs.leakage.audit import AUDITED, audit
from jobs.leakage.check import CheckResult, verdict
from jobs.leakage.check_leaks import own_stores
from jobs.raw.profile_history import FOLDER
from jobs.workspace import releases_url
from model import artifact
from model.errors import CourierError
from model.release_database import url_in

TEXT = pa.string()
TEXTS = pa.list_(TEXT)
START = datetime(2024, 3, 1, tzinfo=UTC)  # of the shop
PAGE_VIEWS = pa.schema(
    [("request_id", pa.string()), ("user_id", pa.string()), ("request_time", TIME), ("period", pa.string())]
    + [("item_ids", TEXTS), ("labels", pa.list_(pa.int8())), ("history_item_ids", TEXTS)]
)


def copied(folder: Path, out: Path) -> Path:
    """The artifact's files in a folder that may be changed; `sealed` makes it an artifact again."""
    shutil.copytree(folder, out)
    return out


def sealed(folder: Path, kind: str, out: Path, **facts: object) -> Path:
    """The files of `folder` as an artifact of its kind, some facts replaced."""
    manifest = artifact.read(folder, kind=kind) if (folder / artifact.MANIFEST).exists() else None
    with artifact.write(out, kind=kind, inputs={}, config=manifest.config if manifest else {}) as draft:
        shutil.copytree(folder, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(artifact.MANIFEST))
        draft.facts = {**(manifest.facts if manifest else {}), **facts}
    return out


def page_views(shop, splits: dict[str, datetime]) -> list[dict]:
    """The page views by plain looping: five items at most, and the user's five newest clicks strictly before."""
    shown = defaultdict(list)
    for row in shop.impressions:
        shown[row["request_id"], row["user_id"], row["request_time"]].append(
            (row["position"], row["item_id"], row["clicked"])
        )
    rows = []
    for (request, user, at), items in shown.items():
        past = {(c["event_time"], c["item_id"]) for c in shop.clicks if c["user_id"] == user and c["event_time"] < at}
        newest = sorted(sorted(past, key=lambda click: click[1]), key=lambda click: click[0], reverse=True)[:5]
        period = "train" if at < splits["valid_start"] else "valid" if at < splits["test_start"] else "test"
        told = {"request_id": request, "user_id": user, "request_time": at, "period": period}
        listed = {"item_ids": [item for _, item, _ in sorted(items)], "labels": [hit for _, _, hit in sorted(items)]}
        rows.append({**told, **listed, "history_item_ids": [item for _, item in newest]})
    return rows


def write_aside(shop, sequences: Path) -> None:
    """A purchase of what was shown first, and two rejected rows: one unusable, one of another user's page."""
    shown = shop.impressions[0]
    bought = {name: shown[name] for name in ("user_id", "item_id", "request_id")} | {
        "event_time": shown["request_time"] + timedelta(hours=1),
        "event_type": "purchase",
    }
    names = ("user_id", "item_id", "event_type", "request_id")
    schema = pa.schema([*((name, pa.string()) for name in names), ("event_time", TIME)])
    foreign = bought | {"user_id": "u-other", "event_time": bought["event_time"].isoformat(), "position": None}
    rows = [("null_user_id", {"user_id": None}), ("request_of_another_user", foreign)]
    refused = [{"table": "events", "row": json.dumps(row), "reason": reason} for reason, row in rows]
    for name, table in (
        ("conversions", pa.Table.from_pylist([bought], schema)),
        ("rejected", pa.Table.from_pylist(refused)),
    ):
        (sequences / name).mkdir()
        pq.write_table(table, sequences / name / "part-0.parquet")


@pytest.fixture(scope="module")
def stages(loaded_shop, tmp_path_factory) -> dict[str, Path]:
    """The small shop's artifacts as the audit reads them, with rows that Feast joined; read-only."""
    from jobs.embeddings import codebook
    from jobs.features import training_rows

    shop, root = loaded_shop, tmp_path_factory.mktemp("audited")
    splits = artifact.read(shop.sequences, kind="sequences").facts["splits"]
    views = page_views(shop, {name: datetime.fromisoformat(at) for name, at in splits.items()})
    draft = copied(shop.sequences, root / "draft")
    (draft / "page_views").mkdir()
    pq.write_table(pa.Table.from_pylist(views, schema=PAGE_VIEWS), draft / "page_views" / "part-0.parquet")
    write_aside(shop, draft)
    out = {name: root / name / "k" for name in AUDITED}
    sealed(draft, "sequences", out["sequences"], events_rejected={"null_user_id": 1, "request_of_another_user": 1})
    config = CodebookConfig(clusters=4, iterations=3)
    codebook.build(embed=shop.embed, sequences=out["sequences"], out=out["codebook"], config=config)
    loaded = {"materialize": shop.workspace / "materialize" / "k", "workspace": shop.workspace}
    training_rows.build(sequences=shop.sequences, features=shop.features, out=out["rows"], **loaded)
    with artifact.write(out["pretrain"], kind="pretrain", inputs={}, config={}) as draft:
        draft.facts = {"trained_until": splits["valid_start"]}
    return out | {name: getattr(shop, name) for name in ("images", "embed", "cluster", "features")}


def failed(stages) -> set[str]:
    return {one.name for one in audit(stages) if not one.passed}


def test_honest_artifacts_pass_every_check_and_every_check_looks_at_rows(stages) -> None:
    results = list(audit(stages))
    assert [one for one in results if not one.passed] == []
    assert [one.name for one in results if one.rows == 0] == []


SABOTAGES = {
    "a history is valid at its click's own moment": (
        ("features", "user_history", "* REPLACE (event_timestamp - INTERVAL 1 MICROSECOND AS event_timestamp)", ""),
        {"user_history.history_is_past", "user_history.history"},
    ),
    "item statistics are valid from the morning of the day they count": (
        ("features", "item_statistics", "* REPLACE (event_timestamp - INTERVAL 1 DAY AS event_timestamp)", ""),
        {"item_statistics.item_statistics"},
    ),
    "rows join the latest user statistics": (
        (
            "rows",
            "train.parquet",
            "* REPLACE (max(user_clicks_30d) OVER (PARTITION BY user_id) AS user_clicks_30d)",
            "",
        ),
        {"rows.user_statistics"},
    ),
    "rows join the latest history": (
        (
            "rows",
            "train.parquet",
            (
                "* REPLACE (last(history_item_ids) OVER latest AS history_item_ids, "
                "last(history_clicked_at) OVER latest AS history_clicked_at)"
            ),
            (
                "WINDOW latest AS (PARTITION BY user_id ORDER BY request_time "
                "ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)"
            ),
        ),
        {"rows.history_is_past", "rows.history"},
    ),
    "items are known before they were created": (
        ("features", "item_profile", "* REPLACE (event_timestamp - INTERVAL 1 HOUR AS event_timestamp)", ""),
        {"item_profile.known_since"},
    ),
    "the label stands in the history of its own page view": (
        (
            "sequences",
            "page_views",
            (
                "* REPLACE (list_slice(list_concat(list_filter(item_ids, lambda x, i: labels[i] = 1), history_item_ids)"
                ", 1, 5) AS history_item_ids)"
            ),
            "",
        ),
        {"page_views.history"},
    ),
    "labels come from other page views": (
        ("rows", "test.parquet", "* REPLACE (1::TINYINT AS clicked)", ""),
        {"rows.label"},
    ),
    "a conversion is counted twice": (
        ("sequences", "conversions", "unnest([user_id, user_id]) AS user_id, * EXCLUDE user_id", ""),
        {"conversions.kind"},
    ),
    "a click is taken for a conversion": (
        ("sequences", "conversions", "* REPLACE ('click' AS event_type)", ""),
        {"conversions.kind"},
    ),
    "a conversion of another user's page is kept": (
        ("sequences", "conversions", "* REPLACE ('u-other' AS user_id)", ""),
        {"conversions.user", "rejected.nowhere_else"},
    ),
    "a rejected row is lost": (
        ("sequences", "rejected", "*", "WHERE reason <> 'null_user_id'"),
        {"rejected.counted"},
    ),
    "page views of the test period train": (
        ("sequences", "page_views", "* REPLACE ('train' AS period)", ""),
        {"page_views.period"},
    ),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotaged_artifact_fails_the_check_that_names_it(stages, tmp_path, name) -> None:
    (stage, table, columns, rest), expected = SABOTAGES[name]
    draft = copied(stages[stage], tmp_path / "draft")
    parts = [draft / table] if table.endswith(".parquet") else sorted((draft / table).iterdir())
    for part in parts:
        connect().execute(f"COPY (SELECT {columns} FROM {read_parquet(part)} {rest}) TO '{part}.new' (FORMAT parquet)")
        part.with_name(f"{part.name}.new").replace(part)
    (draft / artifact.MANIFEST).unlink()
    facts, config = (getattr(artifact.read(stages[stage], kind=stage), what) for what in ("facts", "config"))
    assert config == {}
    found = failed(stages | {stage: sealed(draft, stage, tmp_path / stage, **facts)})
    assert expected <= found
    assert len(found) <= len(expected) + 2  # and the others pass: a check names its own leak


@pytest.mark.parametrize(
    ("stage", "facts"),
    [
        ("codebook", {"fitted_on": 1_000}),
        ("codebook", {"trained_until": "2024-03-12T00:00:00+00:00", "fitted_on": 37}),
        ("pretrain", {"trained_until": "2024-03-12T00:00:00+00:00"}),
    ],
)
def test_what_is_fitted_on_later_pictures_is_found(stages, tmp_path, stage, facts) -> None:
    [found] = failed(stages | {stage: sealed(stages[stage], stage, tmp_path / stage, **facts)})
    assert found.startswith(f"{stage}.")


def remember(workspace: Path, *states: tuple) -> Path:
    """A workspace whose ingests have seen (item, price, day of the shop) of items without category."""
    (workspace / FOLDER).mkdir(parents=True)
    rows = [{"item_id": item, "price": price, "first_seen": START + timedelta(days=day)} for item, price, day in states]
    table = pa.Table.from_pylist(rows, pa.schema([("item_id", TEXT), ("price", pa.float64()), ("first_seen", TIME)]))
    for name, kind in (("category", TEXT), ("created_at", TIME), ("updated_at", TIME)):
        table = table.append_column(name, pa.nulls(len(rows), kind))
    pq.write_table(table, workspace / FOLDER / "000000.parquet")
    return workspace


def test_profiles_are_proven_since_they_were_first_seen_and_what_lies_before_is_counted(stages, shop, tmp_path) -> None:
    # Of every 55th item neither category nor date is known: i0, whose price is not known either.
    shown = [row["request_time"] for row in shop.impressions if row["item_id"] == "i0"]
    before = sum(at < START + timedelta(days=4) for at in shown)
    assert 0 < before < len(shown)
    total = len(shop.impressions)
    for workspace, unproven, violations in (
        (None, total, 0),
        (remember(tmp_path / "honest", ("i0", None, 4)), total - len(shown) + before, 0),
        (remember(tmp_path / "edited", ("i0", 5.0, 4)), total - len(shown) + before, len(shown) - before),
        (remember(tmp_path / "again", ("i0", 5.0, 1), ("i0", None, 4)), None, None),
    ):
        [found] = [one for one in audit(stages, workspace) if one.name == "rows.item_profile_seen"]
        if unproven is not None:
            said = f"{unproven} of {total} rows lie before their item's profile was first seen: not proven"
            assert (found.violations, found.note) == (violations, said)
    between = sum(START + timedelta(days=1) <= at < START + timedelta(days=4) for at in shown)
    assert found.violations == between > 0  # the price of later stands in the rows of earlier


def result(name: str, **facts: object) -> CheckResult:
    return CheckResult(**{"name": name, "claim": "no row knows its future", "rows": 3, "violations": 0, **facts})


def test_the_verdict_names_the_first_failed_check_with_its_example_and_the_others() -> None:
    said = verdict([result("a"), result("b", violations=2, example="r7"), result("c", violations=1)])
    assert said == "check b failed: no row knows its future (violated by 2 of 3 rows, r7); and c"
    assert verdict([result("a")]) is None


def test_a_positive_control_that_sees_no_row_proves_nothing() -> None:
    assert result("a", rows=0).passed
    assert not result("a", rows=0, must_see=True).passed
    assert (
        verdict([result("a", rows=0, must_see=True)]) == "check a failed: no row knows its future (no row to see it in)"
    )


@pytest.fixture
def asked(monkeypatch):
    """Ask the command about these stages, the probes left out: tests/e2e/test_leaks.py plants them."""
    from jobs.leakage import check_leaks

    def ask(stages: dict[str, Path], *options: str):
        monkeypatch.setattr(check_leaks, "open_workspace", lambda folder: SimpleNamespace(folder=folder))
        monkeypatch.setattr(check_leaks, "fresh_stages", lambda _road: stages)
        monkeypatch.setattr(check_leaks, "check", lambda stages, _, users: audit(stages) if users == 7 else [])
        return CliRunner().invoke(check_leaks.app, ["ws", "--sample-users", "7", *options])

    return ask


def test_the_answer_tells_every_check_and_the_versions_it_is_about(stages, asked) -> None:
    result = asked(stages, "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["passed"] is True
    assert answer["versions"] == {name: folder.name for name, folder in stages.items()}
    assert {one["name"] for one in answer["checks"] if one["passed"]} == {one.name for one in audit(stages)}


def test_a_leak_is_exit_status_1_and_one_sentence(stages, asked, tmp_path) -> None:
    later = sealed(stages["pretrain"], "pretrain", tmp_path / "later", trained_until="2024-03-12T00:00:00+00:00")
    result = asked(stages | {"pretrain": later})
    assert result.exit_code == 1
    assert isinstance(result.exception, CourierError)
    assert str(result.exception).startswith("check pretrain.trained_until failed: ")
    assert "\n" not in str(result.exception)


def test_planted_rows_reach_no_store_that_others_read(tmp_path, monkeypatch) -> None:
    theirs = tmp_path / "theirs.yaml"
    ours = (REPOSITORY / "feature_store.yaml").read_text("utf-8")
    theirs.write_text(ours.replace("${COURIER_WORKSPACE}", str(tmp_path / "theirs")), "utf-8")
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", str(theirs))
    monkeypatch.setenv("COURIER_RELEASES", f"sqlite:///{tmp_path}/theirs.db")
    before = read_settings(tmp_path).section, releases_url(tmp_path)
    with own_stores():
        mine = f"sqlite:///{tmp_path}/feast/packed.db"
        assert read_settings(tmp_path).section["connection_string"] == mine != before[0]["connection_string"]
        assert releases_url(tmp_path) == url_in(tmp_path) != before[1]
    assert (read_settings(tmp_path).section, releases_url(tmp_path)) == before
