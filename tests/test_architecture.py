"""The house keeps its plan: rooms, arrows, packaging, and a README that tells the truth."""

import ast
import re
import subprocess
import sys
import time
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

import courier
from feature_repo.contract import SERVICES, VIEWS

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("feature_repo", "jobs", "model", "serving")
README = (ROOT / "README.md").read_text()


def sources() -> list[Path]:
    return [ROOT / "courier.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]


def test_every_module_says_first_what_it_is_for() -> None:
    silent = [path.name for path in sources() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_the_tests_hold_no_packages_that_would_shadow_ours() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_nothing_is_named_after_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
    assert [path for path in sources() if path.stem in drawers] == []


def test_every_verb_of_the_front_door_exists() -> None:
    for verb, (target, what) in courier.VERBS.items():
        module, function = target.split(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, verb
        assert what


def test_help_answers_at_once_because_nothing_heavy_is_imported() -> None:
    took = []
    for _ in range(3):
        begun = time.monotonic()
        done = subprocess.run([sys.executable, ROOT / "courier.py", "--help"], capture_output=True, text=True)
        took.append(time.monotonic() - begun)
        assert done.returncode == 0
        assert "search" in done.stdout
    assert min(took) < 0.5
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "courier.py", "--help"], capture_output=True, text=True
    ).stderr
    for heavy in ("torch", "feast", "pyspark", "apache_beam", "typer", "pyarrow", "numpy"):
        assert f" {heavy}\n" not in imported


def test_an_error_that_the_user_can_cure_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "courier.py", "run", "nowhere", "--workspace", "/nonexistent/ws"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("courier: ")
    assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_traceback_and_a_refusal_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(_: object) -> None:
        list(zip([1], [1, 2], strict=True))  # a ValueError that nobody of ours raised

    def refusal(_: object) -> None:
        raise ValueError("events.csv, row 3: no user_id; fill it in")

    for function in (bug, refusal):
        program = types.ModuleType(f"jobs.{function.__name__}")
        program.main = types.FunctionType(
            function.__code__, {"__name__": program.__name__, "__builtins__": __builtins__}
        )  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, program.__name__, program)
        monkeypatch.setitem(courier.VERBS, function.__name__, (f"{program.__name__}:main", ""))
    with pytest.raises(ValueError, match="zip"):
        courier.main(["bug"])
    with pytest.raises(SystemExit, match=r"^courier: events.csv, row 3: no user_id; fill it in$"):
        courier.main(["refusal"])


def test_the_readmes_tree_exists() -> None:
    named = re.findall(r"^[│├└─ ]*([\w./-]+?)(?:/)?\s{2,}\S", _section("The house"), flags=re.M)
    assert len(named) > 20
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if ".venv" not in path.parts}
    missing = [name for name in named if not any(f == name or f.endswith(f"/{name}") for f in found)]
    assert missing == []


def test_the_readmes_commands_exist() -> None:
    code = "\n".join(README.split("```")[1::2])
    verbs = {match.split()[0] for match in re.findall(r"^courier ([a-z].*)$", code, flags=re.M)}
    assert {"run", "search", "rank"} <= verbs
    assert verbs <= {name.split()[0] for name in courier.VERBS}
    targets = set(re.findall(r"^make ([a-z]+)", code, flags=re.M))
    assert {"demo", "test"} <= targets
    assert targets <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def test_the_readmes_scripts_exist() -> None:
    scripts = set(re.findall(r"\bjobs/sequences/\w+/\w+\.py", README)) | {
        f"{name.replace('.', '/')}.py" for name in re.findall(r"-m ((?:jobs|model)\.[\w.]+)", README)
    }
    assert len(scripts) >= 3
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_the_wheel_holds_what_the_program_reads() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "feature_store.yaml" in settings["package-data"]["feature_repo"]
    for room in ROOMS:
        assert f"{room}*" in settings["packages"]["find"]["include"]


def test_the_lock_pins_every_dependency() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[\w.-]+", dependency)[0].lower() for dependency in wanted} - {"courier", "faiss-gpu"}  # type: ignore[index]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lock.splitlines() if "==" in line}
    assert sorted(name for name in names if name.replace("_", "-") not in pinned) == []


def test_the_applied_registry_holds_the_contracts_views_and_no_others(loaded_shop: Any) -> None:
    from feature_repo.definitions import FEAST_TYPES, open_store

    store = open_store(loaded_shop.workspace)
    applied = {
        view.name: (
            {column.name for column in view.entity_columns},
            {feature.name: feature.dtype for feature in view.features},
        )
        for view in store.list_feature_views()
    }
    assert applied == {
        view.name: (set(view.keys), {feature.name: FEAST_TYPES[feature.kind] for feature in view.features})
        for view in VIEWS
    }


def test_the_applied_registry_holds_the_contracts_services_and_no_others(loaded_shop: Any) -> None:
    from feature_repo.definitions import open_store

    store = open_store(loaded_shop.workspace)
    applied = {
        service.name: [projection.name for projection in service.feature_view_projections]
        for service in store.list_feature_services()
    }
    assert applied == {name: [view.name for view in views] for name, views in SERVICES.items()}


def _section(title: str) -> str:
    return README.split(f"## {title}")[1].split("\n## ")[0]
