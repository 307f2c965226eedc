"""The road rebuilds what changed and what depends on it, and nothing else."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import cli as commands
from jobs import pipeline
from jobs.config import PRESETS
from jobs.pipeline import Road, Stage, StageError, walk
from model import artifact
from model.artifact import Manifest
from model.courier.config import CourierConfig
from model.errors import CourierError

BUILT: list[str] = []


def _build(name: str, out: Path, **inputs: Path) -> Manifest:
    BUILT.append(name)
    digests = {need: artifact.digest(path) for need, path in inputs.items()}
    with artifact.write(out, kind=name, inputs=digests, config={}) as draft:
        (draft.path / "data.txt").write_text(name)
    return artifact.read(out, kind=name)


def build_sequences(raw: Path, raw_digest: str, out: Path) -> Manifest:
    assert raw.is_dir()
    assert raw_digest
    return _build("sequences", out)


def build_images(out: Path, beam_args: Sequence[str] = (), retry_failed: bool = False, **inputs: Path) -> Manifest:
    BUILT.extend(["images retried"] * retry_failed)
    BUILT.extend(beam_args)
    return _build("images", out, **inputs)


def build_pretrain(out: Path, **inputs: Path) -> Manifest:
    return _build("pretrain", out, **inputs)


def build_pretrain_as_asked(out: Path, config: CourierConfig, **inputs: Path) -> Manifest:
    BUILT.append(f"{config.method} with {config.steps} steps")
    return _build("pretrain", out, **inputs)


def build_embed(out: Path, **inputs: Path) -> Manifest:
    return _build("embed", out, **inputs)


@pytest.fixture(autouse=True)
def diamond(monkeypatch: pytest.MonkeyPatch) -> None:
    """sequences -> images, pretrain -> embed: the smallest road with a fork."""
    stages = (
        Stage(name="sequences", build=f"{__name__}:build_sequences", takes=("raw", "raw_digest")),
        Stage(name="images", build=f"{__name__}:build_images", needs=("sequences",), takes=("beam_args",)),
        Stage(name="pretrain", build=f"{__name__}:build_pretrain", needs=("sequences",)),
        Stage(name="embed", build=f"{__name__}:build_embed", needs=("images",)),
    )
    monkeypatch.setattr(pipeline, "STAGES", stages)
    here = {f"build_{name}": globals()[f"build_{name}"] for name in ("sequences", "images", "pretrain", "embed")}
    module = type("module", (), {k: staticmethod(v) for k, v in here.items()})
    monkeypatch.setattr(pipeline, "import_module", lambda _: module)
    BUILT.clear()


@pytest.fixture
def road(tmp_path: Path) -> Road:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "events.csv").write_text("user_id\n")
    (raw / "items.csv").write_text("item_id\n")
    return Road(tmp_path / "ws", raw, "tiny")


def test_a_second_walk_builds_nothing(road: Road) -> None:
    assert set(walk(road).values()) == {"built"}
    assert set(walk(road).values()) == {"skipped"}
    assert BUILT == ["sequences", "images", "pretrain", "embed"]


def test_a_deleted_artifact_is_rebuilt_with_what_depends_on_it_and_nothing_else(road: Road) -> None:
    walk(road)
    (folder,) = (road.workspace / "images").iterdir()
    (folder / artifact.MANIFEST).unlink()
    done = walk(road)
    assert done == {"sequences": "skipped", "images": "built", "pretrain": "skipped", "embed": "built"}


def test_a_change_of_the_raw_tables_rebuilds_everything(road: Road) -> None:
    walk(road)
    (road.raw / "events.csv").write_text("user_id\nu1\n")
    assert set(walk(road).values()) == {"built"}


def test_once_a_daily_log_is_begun_sequences_follow_it_and_not_the_raw_tables(road: Road, monkeypatch) -> None:
    walk(road)
    monkeypatch.setattr(pipeline, "log_digest", lambda _: "some days")
    assert walk(road)["sequences"] == "built"
    (road.raw / "events.csv").write_text("user_id\nu1\n")
    assert walk(road)["sequences"] == "skipped"
    monkeypatch.setattr(pipeline, "log_digest", lambda _: "a day more")
    assert walk(road)["sequences"] == "built"


def test_a_damaged_file_is_noticed_and_rebuilt(road: Road) -> None:
    walk(road)
    (folder,) = (road.workspace / "pretrain").iterdir()
    (folder / "data.txt").write_text("half a file")
    assert walk(road)["pretrain"] == "built"


def test_what_a_killed_run_left_aside_is_swept(road: Road) -> None:
    left = road.workspace / "images" / f".abc-123{artifact.PARTIAL}"
    left.mkdir(parents=True)
    walk(road)
    assert not left.exists()


def test_only_builds_one_stage_and_refuses_without_its_inputs(road: Road) -> None:
    with pytest.raises(StageError, match="embed needs images"):
        walk(road, only="embed")
    walk(road)
    BUILT.clear()
    walk(road, only="images", rebuild=frozenset({"images"}))
    assert BUILT == ["images"]


def test_a_refused_walk_is_not_remembered(road: Road) -> None:
    walk(road)
    other = road.raw.with_name("other")
    other.mkdir()
    with pytest.raises(StageError, match="embed needs"):
        walk(Road(road.workspace, other, "demo"), only="embed")
    assert pipeline.recall_road(road.workspace) == Road(road.workspace.resolve(), road.raw.resolve(), "tiny")


def test_the_hosts_that_images_may_come_from_are_remembered_and_part_of_the_images_key(road: Road) -> None:
    walk(replace(road, allowed_hosts=("cdn.example.com",)))
    assert pipeline.recall_road(road.workspace).allowed_hosts == ("cdn.example.com",)
    images = Stage(name="images", build="", takes=("config",))
    assert replace(road, allowed_hosts=("cdn.example.com",)).config(images)["allowed_hosts"] == ("cdn.example.com",)
    assert road.config(images)["allowed_hosts"] == ()


def test_from_and_only_contradict_each_other(road: Road) -> None:
    with pytest.raises(StageError, match="contradict"):
        commands.run(road.raw, road.workspace, "tiny", from_="images", only="embed")


def test_rebuild_builds_what_is_fresh(road: Road) -> None:
    walk(road)
    done = walk(road, rebuild=frozenset({"pretrain"}))
    assert done == {"sequences": "skipped", "images": "skipped", "pretrain": "built", "embed": "skipped"}


def test_a_forced_rebuild_leaves_the_old_version_to_the_releases_that_name_it(road: Road) -> None:
    walk(road)
    (old,) = (road.workspace / "images").iterdir()
    before = artifact.digest(old)
    walk(road, only="images", rebuild=frozenset({"images"}))
    walk(road, only="images", rebuild=frozenset({"images"}))
    names = sorted(path.name for path in (road.workspace / "images").iterdir())
    assert names == [old.name, f"{old.name}-1", f"{old.name}-2"]
    assert artifact.digest(old) == before
    assert walk(road) == {"sequences": "skipped", "images": "skipped", "pretrain": "skipped", "embed": "built"}


def test_two_runs_in_one_workspace_do_not_meet(road: Road) -> None:
    road.workspace.mkdir()
    with pipeline.FileLock(road.workspace / ".lock"), pytest.raises(StageError, match="another run is at work"):
        walk(road)


def test_an_encoder_of_another_method_lies_beside_the_roads_own(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {stage.name: stage for stage in pipeline.STAGES}
    asked = replace(stages["pretrain"], takes=("config",), build=f"{__name__}:build_pretrain_as_asked")
    monkeypatch.setattr(pipeline, "STAGES", tuple((stages | {"pretrain": asked}).values()))
    here = {name: staticmethod(made) for name, made in globals().items() if name.startswith("build_")}
    monkeypatch.setattr(pipeline, "import_module", lambda _: type("module", (), here))
    walk(road)
    verb = ["pretrain", "--workspace", str(road.workspace)]
    for options in (["--method", "simclr", "--set", "steps=2"], ["--set", "steps=2", "--method", "simclr"], []):
        with pytest.raises(SystemExit) as stop:
            commands.stage_main([*verb, *options])
        assert stop.value.code == 0
    assert [what for what in BUILT if "steps" in what] == ["courier with 60 steps", "simclr with 2 steps"]
    assert set(walk(road).values()) == {"skipped"}
    with pytest.raises(CourierError, match=r"unknown setting 'heads': did you mean courier.heads"):
        commands.stage_main([*verb, "--set", "heads=2"])


def test_the_last_run_is_remembered(road: Road) -> None:
    walk(road)
    assert json.loads((road.workspace / "run.json").read_text())["preset"] == "tiny"
    assert pipeline.recall_road(road.workspace) == Road(road.workspace.resolve(), road.raw.resolve(), "tiny")


def test_an_unknown_workspace_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="courier run RAW"):
        pipeline.recall_road(tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_encoder_reads_images_at_the_size_they_are_stored(preset: str) -> None:
    assert PRESETS[preset]["images"].size == PRESETS[preset]["pretrain"].image_size


def test_failed_images_are_retried_only_where_the_stage_is_up_to_date(road: Road) -> None:
    asked = [str(road.raw), "--workspace", str(road.workspace), "--preset", "tiny", "--retry-failed"]
    with pytest.raises(StageError, match="say `courier images` without it"):
        commands.images_main(asked)
    walk(road)
    with pytest.raises(SystemExit):
        commands.images_main(asked)
    assert BUILT[4:] == ["images retried", "images"]
    assert pipeline.states(road, pipeline.raw_digest(road.raw))["images"].folder.name.endswith("-1")


def test_the_verbs_that_run_beam_hand_its_options_on_and_build_nothing_anew_for_them(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_far_images_changed", lambda *_: False)  # what is built here names no images
    where = ["--workspace", str(road.workspace), "--preset", "tiny", "--", "--runner=FlinkRunner", "--", "--unread=1"]
    for verb in (commands.run_main, commands.images_main):
        (road.raw / "items.csv").write_text(f"item_id\n{verb.__name__}\n")
        walk(road, only="sequences")
        with pytest.raises(SystemExit) as end:
            verb([str(road.raw), *where])
        assert end.value.code == 0
        assert [one for one in BUILT if one.startswith("-")] == ["--runner=FlinkRunner", "--", "--unread=1"]
        BUILT.clear()
    with pytest.raises(SystemExit):
        commands.images_main(["--workspace", str(road.workspace), "--", "--runner=SparkRunner"])
    assert BUILT == []
