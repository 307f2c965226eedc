"""The pipeline rebuilds what changed and what depends on it, and nothing else."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import cli, pipeline
from jobs.config import PRESETS
from jobs.pipeline import explain, run_stages, stage_states
from jobs.settings import Layer, resolve
from jobs.stages import Stage
from jobs.workspace import StageError, Workspace, locked, open_workspace
from model import artifact
from model.artifact import Manifest
from model.courier.config import CourierConfig
from model.errors import CourierError

BUILT: list[str] = []
OUTSIDE: dict[str, bool] = {}


def _build(name: str, out: Path, text: str | None = None, **inputs: Path) -> Manifest:
    BUILT.append(name)
    with artifact.write(out, kind=name, inputs=artifact.digests(inputs), config={}) as draft:
        (draft.path / "data.txt").write_text(text or name, "utf-8")
        draft.parts["kind"] = name
    return artifact.read(out, kind=name)


def read_events(_: Path, raw: Path, __: Any) -> dict[str, str]:
    return {"events": (raw / "events.csv").read_text("utf-8")}


def build_sequences(raw: Path, raw_digest: str, out: Path) -> Manifest:
    assert raw.is_dir()
    assert raw_digest == (raw / "events.csv").read_text("utf-8")
    return _build("sequences", out, raw_digest)


def build_images(out: Path, beam_args: Sequence[str] = (), retry_failed: bool = False, **inputs: Path) -> Manifest:
    BUILT.extend(["images retried"] * retry_failed)
    BUILT.extend(beam_args)
    return _build("images", out, (inputs["sequences"] / "data.txt").read_text("utf-8"), **inputs)


def build_pretrain(out: Path, **inputs: Path) -> Manifest:
    return _build("pretrain", out, **inputs)


def build_pretrain_as_asked(out: Path, config: CourierConfig, **inputs: Path) -> Manifest:
    BUILT.append(f"{config.method} with {config.steps} steps")
    return _build("pretrain", out, **inputs)


def build_embed(out: Path, **inputs: Path) -> Manifest:
    return _build("embed", out, **inputs)


def build_index(out: Path) -> Manifest:
    return _build("index", out)


def stands(_: Path, built: Path, __: Mapping[str, Path]) -> bool:
    assert built.is_dir()
    return OUTSIDE.get("embed", True)


def released(_: Path) -> None:
    """No release: tests/jobs/test_pinned.py has one."""


@pytest.fixture(autouse=True)
def diamond(monkeypatch: pytest.MonkeyPatch) -> None:
    """sequences -> images, pretrain -> embed: the smallest pipeline with a fork; pretrain reads a part of sequences."""
    here = f"{__name__}:"
    stages = (
        Stage(
            name="sequences", build=f"{here}build_sequences", options=("raw", "raw_digest"), reads=f"{here}read_events"
        ),
        Stage(name="images", build=f"{here}build_images", inputs=("sequences",), options=("beam_args",)),
        Stage(name="pretrain", build=f"{here}build_pretrain", inputs=("sequences/kind",)),
        Stage(name="embed", build=f"{here}build_embed", inputs=("images",), stands=f"{here}stands"),
    )
    set_stages(monkeypatch, *stages)
    BUILT.clear()
    OUTSIDE.clear()


def set_stages(monkeypatch: pytest.MonkeyPatch, *stages: Stage) -> None:
    monkeypatch.setattr(pipeline, "STAGES", stages)
    functions = {name: staticmethod(made) for name, made in globals().items() if callable(made)}
    monkeypatch.setattr(pipeline, "import_module", lambda _: type("module", (), functions))


def revised(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    set_stages(monkeypatch, *(replace(one, **changes) if one.name == name else one for one in pipeline.STAGES))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "events.csv").write_text("user_id\n", "utf-8")
    (raw / "items.csv").write_text("item_id\n", "utf-8")
    asked = {"preset": "tiny"}
    settings = resolve([Layer(origin="a test", settings=asked)])
    return Workspace(folder=tmp_path / "ws", raw=raw, settings=settings, asked=asked)


def versions(workspace: Workspace, stage: str) -> list[Path]:
    return sorted(path for path in (workspace.folder / stage).iterdir() if path.is_dir())


def test_a_second_run_builds_nothing(workspace: Workspace) -> None:
    assert set(run_stages(workspace).values()) == {"built"}
    assert set(run_stages(workspace).values()) == {"skipped"}
    assert BUILT == ["sequences", "images", "pretrain", "embed"]


def test_a_deleted_artifact_is_rebuilt_and_nothing_else_where_it_comes_out_the_same(workspace: Workspace) -> None:
    run_stages(workspace)
    (folder,) = versions(workspace, "images")
    (folder / artifact.MANIFEST).unlink()
    done = run_stages(workspace)
    assert done == {"sequences": "skipped", "images": "built", "pretrain": "skipped", "embed": "skipped"}


def test_what_was_not_changed_by_its_content_is_not_built_again(workspace: Workspace) -> None:
    run_stages(workspace)
    (workspace.raw / "events.csv").touch()
    done = run_stages(workspace, rebuild=frozenset({"images"}))  # to the same bytes
    assert done == {"sequences": "skipped", "images": "built", "pretrain": "skipped", "embed": "skipped"}
    assert set(run_stages(workspace).values()) == {"skipped"}


def test_a_change_that_leaves_the_part_as_it_was_leaves_who_reads_no_more_than_that(workspace: Workspace) -> None:
    run_stages(workspace)
    (workspace.raw / "events.csv").write_text("user_id\nu1\n", "utf-8")
    done = run_stages(workspace)
    assert done == {"sequences": "built", "images": "built", "pretrain": "skipped", "embed": "built"}


def test_a_stage_of_another_revision_is_built_again_and_what_it_makes_alike_is_not_built_upon_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stages(workspace)
    revised(monkeypatch, "images", revision=2)
    assert explain(workspace, "images") == ["images: its revision was 1 and is 2"]
    done = run_stages(workspace)
    assert done == {"sequences": "skipped", "images": "built", "pretrain": "skipped", "embed": "skipped"}


def test_a_stage_whose_outside_no_longer_stands_is_built_again(workspace: Workspace) -> None:
    run_stages(workspace)
    OUTSIDE["embed"] = False
    assert explain(workspace, "embed") == ["embed: what it did outside its artifact no longer stands"]
    done = run_stages(workspace)
    assert done == {"sequences": "skipped", "images": "skipped", "pretrain": "skipped", "embed": "built"}


def test_why_a_stage_is_stale_is_told_back_to_its_root(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain(workspace, "sequences") == ["sequences: it was never built"]
    run_stages(workspace)
    assert explain(workspace, "embed") == ["embed is up to date"]
    (workspace.raw / "events.csv").write_text("a\n", "utf-8")
    assert explain(workspace, "embed") == [
        "sequences: the content of events changed (user_id\n to a\n)",
        "images: its input sequences is not up to date",
        "embed: its input images is not up to date",
    ]
    revised(monkeypatch, "sequences", reads=None)
    assert explain(workspace, "sequences") == ["sequences: events is no longer among its inputs"]


def test_why_names_the_setting_that_changed(workspace: Workspace) -> None:
    run_stages(workspace)
    other = workspace.with_config(images=replace(workspace.config.images, size=32))
    assert explain(other, "images") == ["images: images.size was 64 and is 32"]


def test_a_damaged_file_is_noticed_and_rebuilt(workspace: Workspace) -> None:
    run_stages(workspace)
    (folder,) = versions(workspace, "pretrain")
    (folder / "data.txt").write_text("half a file", "utf-8")
    assert run_stages(workspace)["pretrain"] == "built"


def test_what_a_killed_run_left_aside_is_swept(workspace: Workspace) -> None:
    left = workspace.folder / "images" / f".abc-123{artifact.PARTIAL}"
    left.mkdir(parents=True)
    run_stages(workspace)
    assert not left.exists()


def test_only_builds_one_stage_and_refuses_without_its_inputs(workspace: Workspace) -> None:
    with pytest.raises(StageError, match="embed needs images"):
        run_stages(workspace, only="embed")
    run_stages(workspace)
    BUILT.clear()
    run_stages(workspace, only="images", rebuild=frozenset({"images"}))
    assert BUILT == ["images"]


def test_one_stage_alone_reads_nothing_that_it_is_not_made_of(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stages(monkeypatch, *pipeline.STAGES, Stage(name="index", build=f"{__name__}:build_index"))
    (workspace.raw / "events.csv").unlink()  # which the stage sequences reads
    assert run_stages(workspace, only="index") == {"index": "built"}
    assert list(stage_states(workspace, only="index")) == ["index"]
    with pytest.raises(FileNotFoundError, match=r"events\.csv"):
        run_stages(workspace)


def test_a_refused_run_is_not_remembered(workspace: Workspace) -> None:
    run_stages(workspace)
    other = workspace.raw.with_name("other")
    shutil.copytree(workspace.raw, other)
    (other / "events.csv").write_text("others\n", "utf-8")
    with pytest.raises(StageError, match="embed needs"):
        run_stages(replace(workspace, raw=other), only="embed")
    assert open_workspace(workspace.folder).raw == workspace.raw.resolve()


def test_the_hosts_that_images_may_come_from_are_remembered_and_part_of_the_images_key(workspace: Workspace) -> None:
    run_stages(open_workspace(workspace.folder, workspace.raw, preset="tiny", allowed_hosts=("cdn.example.com",)))
    assert open_workspace(workspace.folder).config.images.allowed_hosts == ("cdn.example.com",)
    assert explain(workspace, "images") == ["images: images.allowed_hosts was ['cdn.example.com'] and is []"]


def test_from_and_only_contradict_each_other(workspace: Workspace) -> None:
    with pytest.raises(StageError, match="contradict"):
        cli.run(workspace.raw, workspace.folder, "tiny", from_="images", only="embed")


def test_rebuild_builds_what_is_fresh(workspace: Workspace) -> None:
    run_stages(workspace)
    done = run_stages(workspace, rebuild=frozenset({"pretrain"}))
    assert done == {"sequences": "skipped", "images": "skipped", "pretrain": "built", "embed": "skipped"}


def test_a_forced_rebuild_leaves_the_old_version_to_the_releases_that_name_it(workspace: Workspace) -> None:
    run_stages(workspace)
    (old,) = versions(workspace, "images")
    before = artifact.digest(old)
    run_stages(workspace, only="images", rebuild=frozenset({"images"}))
    run_stages(workspace, only="images", rebuild=frozenset({"images"}))
    names = [path.name for path in versions(workspace, "images")]
    assert names == [old.name, f"{old.name}-1", f"{old.name}-2"]
    assert artifact.digest(old) == before
    assert set(run_stages(workspace).values()) == {"skipped"}


def test_two_runs_in_one_workspace_do_not_meet(workspace: Workspace) -> None:
    workspace.folder.mkdir()
    with locked(workspace.folder), pytest.raises(StageError, match="another run is at work"):
        run_stages(workspace)


def test_an_encoder_of_another_method_lies_beside_the_pipelines_own(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    revised(monkeypatch, "pretrain", options=("config",), build=f"{__name__}:build_pretrain_as_asked")
    run_stages(workspace)
    verb = ["pretrain", "--workspace", str(workspace.folder)]
    other, shorter = ["--method", "simclr"], ["--set", "pretrain.steps=2"]
    for options in ([*other, *shorter], [*shorter, *other], []):
        with pytest.raises(SystemExit) as stop:
            cli.stage_main([*verb, *options])
        assert stop.value.code == 0
    assert [what for what in BUILT if "steps" in what] == ["courier with 60 steps", "simclr with 2 steps"]
    assert set(run_stages(workspace).values()) == {"skipped"}
    with pytest.raises(CourierError, match=r"unknown setting 'pretrain.heads': did you mean pretrain.courier.heads"):
        cli.stage_main([*verb, "--set", "pretrain.heads=2"])


def test_the_last_run_is_remembered(workspace: Workspace) -> None:
    run_stages(workspace)
    assert json.loads((workspace.folder / "run.json").read_text("utf-8")) == {"raw": str(workspace.raw.resolve())}
    assert (workspace.folder / "courier.toml").read_text("utf-8") == 'preset = "tiny"\n'
    again = open_workspace(workspace.folder)
    assert (again.raw, again.settings.preset) == (workspace.raw.resolve(), "tiny")


def test_an_unknown_workspace_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="courier run RAW"):
        open_workspace(tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_encoder_reads_images_at_the_size_they_are_stored(preset: str) -> None:
    assert PRESETS[preset].images.size == PRESETS[preset].pretrain.image_size


def test_failed_images_are_retried_only_where_the_stage_is_up_to_date(workspace: Workspace) -> None:
    asked = [str(workspace.raw), "--workspace", str(workspace.folder), "--preset", "tiny", "--retry-failed"]
    with pytest.raises(StageError, match="say `courier images` without it"):
        cli.images_main(asked)
    run_stages(workspace)
    with pytest.raises(SystemExit):
        cli.images_main(asked)
    assert BUILT[4:] == ["images retried", "images"]
    assert stage_states(workspace)["images"].folder.name.endswith("-1")


def test_the_verbs_that_run_beam_hand_its_options_on_and_build_nothing_anew_for_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_far_images_changed", lambda *_: False)  # what is built here names no images
    where = ["--workspace", str(workspace.folder), "--preset", "tiny", "--", "--runner=FlinkRunner", "--", "--unread=1"]
    for verb in (cli.run_main, cli.images_main):
        (workspace.raw / "events.csv").write_text(f"user_id\n{verb.__name__}\n", "utf-8")
        run_stages(workspace, only="sequences")
        with pytest.raises(SystemExit) as end:
            verb([str(workspace.raw), *where])
        assert end.value.code == 0
        assert [one for one in BUILT if one.startswith("-")] == ["--runner=FlinkRunner", "--", "--unread=1"]
        BUILT.clear()
    with pytest.raises(SystemExit):
        cli.images_main(["--workspace", str(workspace.folder), "--", "--runner=SparkRunner"])
    assert BUILT == []
