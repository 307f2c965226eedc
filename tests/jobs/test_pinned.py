"""What the current release pins stands until it is asked for; what must be asked for, and what says so."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs import cli, pipeline, status
from jobs.pipeline import explain, old_encoder, run_stages, stage_states
from jobs.releases.pinned import trained_too_late
from jobs.settings import Layer, resolve
from jobs.stages import Stage
from jobs.workspace import StageError, Workspace
from model import artifact
from model.artifact import Manifest

BUILT: list[str] = []


@dataclass
class Current:
    """The release that answers, as the pipeline asks for it; and why what it pins cannot be used."""

    release: Any = None
    refusal: str | None = None


@dataclass(frozen=True)
class Named:
    release_id: str
    artifacts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


CURRENT = Current()


def released(_: Path) -> Any:
    return CURRENT.release


def usable(pinned: Path, inputs: Mapping[str, Path]) -> str | None:
    assert (pinned / artifact.MANIFEST).is_file()
    assert set(inputs) <= {"sequences", "embed"}
    return CURRENT.refusal


def read_events(_: Path, raw: Path, __: Any) -> dict[str, str]:
    return {"events": (raw / "events.csv").read_text("utf-8")}


def build(out: Path, raw_digest: str = "", released: Mapping[str, Path] | None = None, **inputs: Path) -> Manifest:
    """An artifact that holds what its inputs hold, and its own name."""
    name = out.parent.name
    BUILT.append(f"{name} continuing {released['codebook'].name}" if released else name)
    text = raw_digest + name + "".join((path / "data.txt").read_text("utf-8") for path in inputs.values())
    with artifact.write(out, kind=name, inputs=artifact.digests(inputs), config={}) as draft:
        (draft.path / "data.txt").write_text(text, "utf-8")
    return artifact.read(out, kind=name)


HERE = f"{__name__}:"
TABLE = (
    Stage(name="sequences", build=f"{HERE}build", options=("raw_digest",), reads=f"{HERE}read_events"),
    Stage(
        name="pretrain",
        build=f"{HERE}build",
        inputs=("sequences",),
        pinned=f"{HERE}usable",
        asked_by="--encoder train",
    ),
    Stage(name="embed", build=f"{HERE}build", inputs=("pretrain",)),
    Stage(
        name="codebook",
        build=f"{HERE}build",
        inputs=("embed", "sequences"),
        released=("codebook",),
        pinned=f"{HERE}usable",
        asked_by="--from codebook",
    ),
    Stage(name="cluster", build=f"{HERE}build", inputs=("embed", "codebook")),
)
NEW_DAY = {"sequences": "built", "pretrain": "pinned", "embed": "skipped", "codebook": "pinned", "cluster": "skipped"}


def set_stages(monkeypatch: pytest.MonkeyPatch, *stages: Stage) -> None:
    monkeypatch.setattr(pipeline, "STAGES", stages)
    monkeypatch.setattr(pipeline, "NAMES", tuple(stage.name for stage in stages))
    monkeypatch.setattr(cli, "NAMES", pipeline.NAMES)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages from sequences to cluster, as the real table has them, of text files."""
    functions = {name: staticmethod(made) for name, made in globals().items() if callable(made)}
    monkeypatch.setattr(pipeline, "import_module", lambda _: type("module", (), functions))
    set_stages(monkeypatch, *TABLE)
    BUILT.clear()
    CURRENT.release = CURRENT.refusal = None


def release(workspace: Workspace, name: str, **built: Any) -> None:
    """Let what a run has made be the current release."""
    states = stage_states(workspace) | built
    CURRENT.release = Named(
        name,
        {
            stage: {
                "path": state.folder.relative_to(workspace.folder).as_posix(),
                "digest": artifact.digest(state.folder),
            }
            for stage, state in states.items()
        },
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace whose first release answers, and a new day of events after it."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "events.csv").write_text("monday\n", "utf-8")
    settings = resolve([Layer(origin="a test", settings={"preset": "tiny"})])
    made = Workspace(folder=tmp_path / "ws", raw=raw, settings=settings, asked={"preset": "tiny"})
    assert set(run_stages(made).values()) == {"built"}
    release(made, "r1")
    (raw / "events.csv").write_text("monday\ntuesday\n", "utf-8")
    BUILT.clear()
    return made


def test_another_day_leaves_what_the_release_pins_and_what_is_made_of_it(workspace: Workspace) -> None:
    assert run_stages(workspace) == NEW_DAY
    assert BUILT == ["sequences"]
    assert set(run_stages(workspace).values()) == {"skipped", "pinned"}


def test_without_a_release_another_day_makes_everything_anew(workspace: Workspace) -> None:
    CURRENT.release = None
    assert set(run_stages(workspace).values()) == {"built"}


def test_another_encoder_is_made_when_it_is_asked_for_and_its_codebook_continues_the_old(workspace: Workspace) -> None:
    asked = frozenset({"pretrain"})
    assert set(run_stages(workspace, anew=asked).values()) == {"built"}
    old = CURRENT.release.artifacts["codebook"]["path"].rpartition("/")[2]
    assert BUILT.pop(3) == f"codebook continuing {old}"
    assert BUILT == ["sequences", "pretrain", "embed", "cluster"]
    assert set(run_stages(workspace, anew=asked).values()) == {"skipped"}  # a run that was killed goes on so
    assert run_stages(workspace)["pretrain"] == "pinned"  # no release has it yet
    named = {name: CURRENT.release.artifacts[name]["path"] for name in ("pretrain", "codebook")}
    newest = {one: max((workspace.folder / one).glob("*/"), key=lambda p: p.stat().st_mtime_ns) for one in named}
    assert all(workspace.folder / named[name] != newest[name] for name in named)
    release(workspace, "r2", **{one: replace(stage_states(workspace)[one], folder=newest[one]) for one in named})
    (workspace.raw / "events.csv").write_text("wednesday\n", "utf-8")
    done = run_stages(workspace)
    assert (done["pretrain"], done["codebook"]) == ("pinned", "pinned")
    assert stage_states(workspace)["pretrain"].folder == newest["pretrain"]


def test_an_encoder_asked_for_that_nothing_has_changed_for_is_not_trained_again(workspace: Workspace) -> None:
    (workspace.raw / "events.csv").write_text("monday\n", "utf-8")
    done = run_stages(workspace, anew=frozenset({"pretrain"}))
    assert (done["pretrain"], done["codebook"]) == ("skipped", "pinned")
    assert BUILT == []


def test_other_settings_of_the_encoder_ask_for_another(workspace: Workspace) -> None:
    other = workspace.with_config(pretrain=replace(workspace.config.pretrain, steps=2))
    assert set(run_stages(other).values()) == {"built"}


def test_a_setting_that_came_with_a_new_release_of_courier_asks_for_nothing_until_somebody_sets_it(
    workspace: Workspace,
) -> None:
    folder = workspace.folder / CURRENT.release.artifacts["pretrain"]["path"]
    key = json.loads(folder.with_suffix(".json").read_text("utf-8"))
    del key["config"]["steps"]
    folder.with_suffix(".json").write_text(json.dumps(key), "utf-8")
    assert stage_states(workspace)["pretrain"].pinned == "r1"
    said = replace(workspace.settings, origins={**workspace.settings.origins, "pretrain.steps": "courier.toml"})
    assert not stage_states(replace(workspace, settings=said))["pretrain"].pinned


def test_a_new_revision_trains_nothing_and_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.raw / "events.csv").write_text("monday\n", "utf-8")
    set_stages(monkeypatch, *(replace(one, revision=2) if one.pinned else one for one in TABLE))
    assert run_stages(workspace)["pretrain"] == "pinned"
    [said] = explain(workspace, "pretrain")
    assert said.startswith("pretrain stands as in the current release r1; since then: its revision was 1 and is 2; ")
    assert said.endswith("`courier run --encoder train` makes another")


def test_what_changed_since_is_told(workspace: Workspace) -> None:
    run_stages(workspace)
    [said] = explain(workspace, "codebook")
    assert "r1; since then: the content of sequences changed (" in said


def test_a_damaged_encoder_is_trained_again(workspace: Workspace) -> None:
    folder = workspace.folder / CURRENT.release.artifacts["pretrain"]["path"]
    (folder / "data.txt").write_text("half", "utf-8")
    assert run_stages(workspace)["pretrain"] == "built"


def test_an_encoder_that_knows_too_much_is_refused_with_the_cure(workspace: Workspace) -> None:
    CURRENT.refusal = "it was trained on Tuesday"
    said = "pretrain is pinned to r1, but it was trained on Tuesday: `courier run --encoder train` makes another"
    with pytest.raises(StageError) as refused:
        run_stages(workspace)
    assert str(refused.value) == said
    assert explain(workspace, "pretrain") == [f"pretrain: {said}"]
    CURRENT.refusal = None
    assert run_stages(workspace)["pretrain"] == "pinned"


def test_what_ends_before_validation_may_stand_and_what_ends_later_may_not(tmp_path: Path) -> None:
    def write(name: str, **facts: Any) -> Path:
        with artifact.write(tmp_path / name, kind=name, inputs={}, config={}) as draft:
            draft.facts |= facts
        return tmp_path / name

    pinned = write("pretrain", trained_until="2024-03-01T00:00:00+00:00")
    sequences = write("sequences", splits={"valid_start": "2024-03-01T00:00:00+00:00"})
    assert trained_too_late(pinned, {"sequences": sequences}) is None
    assert trained_too_late(pinned, {}) is None
    sequences = write("sequences", splits={"valid_start": "2024-02-29T23:59:59.999999+00:00"})
    assert "validation begins at 2024-02-29T23:59:59" in str(trained_too_late(pinned, {"sequences": sequences}))


@pytest.mark.parametrize(
    ("options", "pinned"),
    [
        ([], {"pretrain", "codebook"}),
        (["--from", "sequences"], {"pretrain", "codebook"}),
        (["--from", "pretrain"], set()),
        (["--only", "pretrain"], set()),
        (["--encoder", "train"], set()),
        (["--from", "codebook"], {"pretrain"}),
    ],
)
def test_only_who_names_it_has_it_made_anew(workspace: Workspace, options: list[str], pinned: set[str]) -> None:
    run_stages(workspace, only="sequences")
    BUILT.clear()
    with pytest.raises(SystemExit) as end:
        cli.run_main([str(workspace.raw), "--workspace", str(workspace.folder), "--preset", "tiny", *options])
    assert end.value.code == 0
    built = {one.partition(" ")[0] for one in BUILT}
    assert {"pretrain", "codebook"} - built - ({"codebook"} if "--only" in options else set()) == pinned


def test_a_stage_that_begins_with_the_release_only_where_it_is_told_to_is_not_stale_by_the_release_it_makes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, begins = ("sequences", "cluster"), {"released": ("codebook", "ctr"), "released_if": "warm_start"}
    set_stages(monkeypatch, *TABLE, Stage(name="ctr", build=f"{HERE}build", inputs=inputs, **begins))
    run_stages(workspace)
    release(workspace, "r2")
    assert set(run_stages(workspace).values()) == {"skipped", "pinned"}
    warm = workspace.with_config(ctr=replace(workspace.config.ctr, warm_start=True))
    assert [run_stages(warm)["ctr"] for _ in range(2)] == ["built", "skipped"]
    release(warm, "r3")
    assert run_stages(warm)["ctr"] == "skipped"
    made = CURRENT.release.artifacts
    (workspace.raw / "events.csv").write_text("wednesday\n", "utf-8")
    BUILT.clear()
    assert [run_stages(warm)["ctr"] for _ in range(2)] == ["built", "skipped"]
    assert BUILT.pop() == f"ctr continuing {made['codebook']['path'].rpartition('/')[2]}"
    assert BUILT == ["sequences"]
    release(warm, "r4")
    assert made["ctr"] != CURRENT.release.artifacts["ctr"]
    assert set(run_stages(warm).values()) == {"skipped", "pinned"}


def test_an_old_encoder_is_told_and_not_before(workspace: Workspace) -> None:
    run_stages(workspace)
    states = stage_states(workspace)
    built = datetime.fromisoformat(artifact.read_manifest(states["pretrain"].folder).created_at)
    assert old_encoder(workspace, states, built + timedelta(days=31) - timedelta(microseconds=1)) is None
    said = old_encoder(workspace, states, built + timedelta(days=31))
    assert said == (
        "pretrain is as in r1 and 31 days old: `courier run --encoder train` makes another from the data there is now"
    )
    patient = workspace.with_config(encoder_days=31)
    assert old_encoder(patient, states, built + timedelta(days=31)) is None
    CURRENT.release = None
    assert old_encoder(workspace, stage_states(workspace), datetime.now(UTC) + timedelta(days=99)) is None


def test_status_says_what_is_pinned_and_how_old_it_is(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stages(workspace)
    monkeypatch.setattr(status, "current_release", lambda _: "r1")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        status.status_main(["--workspace", str(workspace.folder), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {row["stage"]: (row["state"], row["days"]) for row in told["stages"]} == {
        "sequences": ("fresh", 0),
        "pretrain": ("pinned", 0),
        "embed": ("fresh", 0),
        "codebook": ("pinned", 0),
        "cluster": ("fresh", 0),
    }
    assert told["old_encoder"] is None
