"""Settings: a preset, then each courier.toml, then the command line; each value knows where it came from."""

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from jobs.config import PRESETS
from jobs.settings import Layer, as_toml, read_layers, remember, resolve
from jobs.stages import STAGES
from jobs.workspace import open_workspace
from jobs.workspace import remember as remember_workspace
from model.errors import CourierError


def layer(text: str, origin: str = "courier.toml") -> Layer:
    return Layer(origin=origin, settings=tomllib.loads(text))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "shop" / "raw"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_alone_is_the_preset(preset: str) -> None:
    settings = resolve([layer(f'preset = "{preset}"')])
    assert settings.config == PRESETS[preset]
    assert set(settings.origins.values()) == {f"preset {preset}"}


def test_the_later_layer_wins_and_each_value_knows_where_it_came_from() -> None:
    first = layer("[images]\nsize = 32\nmin_side = 4\n", "first")
    second = layer("[images]\nsize = 48\n", "second")
    settings = resolve([first, second], given=["ctr.neural.epochs=7"])
    images = settings.config.images
    assert (images.size, images.min_side, settings.config.ctr.neural.epochs) == (48, 4, 7)
    where = ("images.size", "images.min_side", "ctr.neural.epochs", "index.kind")
    assert [settings.origins[name] for name in where] == ["second", "first", "the command line", "preset demo"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[images]\nsze = 32\n", "shop.toml: unknown setting 'images.sze': did you mean images.size"),
        ("[image]\nsize = 32\n", "shop.toml: there is no stage 'image': did you mean images?"),
        ("[images]\nsize = true\n", "shop.toml: setting images.size is True, not a whole number"),
        ("images = 3\n", "shop.toml: 'images' is a group of settings"),
        ('preset = "huge"\n', "shop.toml: there is no preset 'huge': choose among tiny, demo, full"),
        ('engine = "flink"\n', "shop.toml: setting engine is 'flink', not one of duckdb, spark, beam"),
    ],
)
def test_what_cannot_be_is_refused_with_the_file_and_the_nearest_name(text: str, said: str) -> None:
    with pytest.raises(CourierError) as refusal:
        resolve([layer(text, "shop.toml")])
    assert str(refusal.value).startswith(said)


def test_files_are_looked_for_beside_the_raw_folder_in_the_workspace_and_where_asked(raw: Path, tmp_path: Path) -> None:
    workspace, asked = tmp_path / "ws", tmp_path / "mine.toml"
    workspace.mkdir()
    for path, size in ((raw.parent / "courier.toml", 16), (workspace / "courier.toml", 24), (asked, 32)):
        path.write_text(f"[images]\nsize = {size}\n", "utf-8")
    sizes = [one.settings["images"]["size"] for one in read_layers(raw, workspace, asked)]
    assert sizes == [16, 24, 32]
    (workspace / "courier.toml").unlink()
    assert resolve(read_layers(raw, workspace, None)).config.images.size == 16
    with pytest.raises(CourierError, match="does not exist"):
        read_layers(raw, workspace, tmp_path / "nowhere.toml")
    asked.write_text("[images\n", "utf-8")
    with pytest.raises(CourierError, match=r"mine\.toml is not TOML"):
        read_layers(raw, workspace, asked)


def test_another_method_leaves_what_was_tuned_for_the_presets_own_behind() -> None:
    settings = resolve([layer('preset = "demo"\n[pretrain]\nmethod = "simclr"\nsteps = 9\n')])
    assert (settings.config.pretrain.method, settings.config.pretrain.steps) == ("simclr", 9)
    assert settings.config.pretrain.courier == type(settings.config.pretrain.courier)()


def test_what_is_printed_is_a_courier_toml_that_gives_the_same_settings() -> None:
    settings = resolve([layer('preset = "tiny"\n[images]\nallowed_hosts = ["a.example", "b.example"]\n')])
    printed = as_toml(settings)
    assert 'allowed_hosts = ["a.example", "b.example"] # courier.toml' in printed
    assert resolve([layer(printed)]).config == settings.config


def test_what_is_asked_for_good_is_written_into_the_workspaces_file_and_nothing_else_of_it_changes(
    tmp_path: Path,
) -> None:
    (tmp_path / "courier.toml").write_text("# ours\n[images]  # small\nsize = 32 # pixels\n", "utf-8")
    remember(tmp_path, {"preset": "tiny", "images": {"allowed_hosts": ["a.example"]}})
    text = (tmp_path / "courier.toml").read_text("utf-8")
    assert tomllib.loads(text) == {"preset": "tiny", "images": {"size": 32, "allowed_hosts": ["a.example"]}}
    assert "# ours" in text
    assert "size = 32 # pixels" in text


def test_a_run_remembers_its_config_file_and_not_what_was_set_for_it_alone(raw: Path, tmp_path: Path) -> None:
    workspace, mine = tmp_path / "ws", tmp_path / "mine.toml"
    workspace.mkdir()
    mine.write_text("[images]\nsize = 32\n", "utf-8")
    opened = open_workspace(workspace, raw, preset="tiny", config_file=mine, given=["images.min_side=2"])
    assert (opened.config.images.size, opened.config.images.min_side) == (32, 2)
    remember_workspace(opened)
    again = open_workspace(workspace)
    assert (again.settings.preset, again.config.images.size, again.config.images.min_side) == ("tiny", 32, 8)


def test_every_stage_with_a_config_has_one_and_no_config_is_without_a_stage() -> None:
    names = {field.name for field in fields(PRESETS["demo"])} - {"engine", "master", "promotion", "encoder_days"}
    assert names == {stage.name for stage in STAGES if "config" in stage.options}
