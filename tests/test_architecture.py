"""The house keeps its plan: rooms, arrows, packaging, and a README that tells the truth."""

import ast
import builtins
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import courier
from feature_repo.contract import SERVICES, VIEWS
from model.errors import CourierError

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("feature_repo", "jobs", "model", "serving")
README = (ROOT / "README.md").read_text("utf-8")
BUILT_IN = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
OF_VALUES = BUILT_IN - {"TypeError"}  # which is for whoever writes code that calls ours
# How our messages tell a cure: a colon or a semicolon, and what to do.
CURE = (
    r"[:;] (?:give|choose|write|remove|rebuild|run|build|check|leave|change|name|say|make|embed|join|compute|raise|set"
    r"|use|install|mend|train|pip|move|start|promote|look)\b"
)

Verb = Callable[[Exception], None]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Gives the front door a verb, `verb`, that raises this."""

    def add(error: Exception) -> None:
        def main(_: object) -> None:
            raise error

        program = types.ModuleType("program")
        program.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "program", program)
        monkeypatch.setitem(courier.VERBS, "verb", ("program:main", ""))

    return add


def sources() -> list[Path]:
    return [ROOT / "courier.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]


def test_every_module_says_first_what_it_is_for() -> None:
    silent = [path.name for path in sources() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert silent == []


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    of_tests = dict.fromkeys((ROOT / "tests").rglob("*.py"), 500)
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in (*sources(), *of_tests)}
    assert {str(path): lines for path, lines in lengths.items() if lines > of_tests.get(path, 400)} == {}


def test_the_tests_hold_no_packages_that_would_shadow_ours() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_nothing_is_named_after_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
    assert [path for path in sources() if path.stem in drawers] == []


def test_json_is_written_by_the_one_module_that_keeps_to_its_standard() -> None:
    others = [path.relative_to(ROOT).as_posix() for path in sources() if path.stem != "strict_json"]
    writing = re.compile(r"(?<!strict_)\bjson\.dumps?\b")
    assert [name for name in others if writing.search((ROOT / name).read_text("utf-8"))] == []


def test_every_verb_of_the_front_door_exists() -> None:
    for verb, (target, what) in courier.VERBS.items():
        module, function = target.split(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, verb
        assert what


def test_help_answers_at_once_because_it_needs_nothing_but_the_standard_library() -> None:
    without_packages = [sys.executable, "-S", ROOT / "courier.py", "--help"]
    done = subprocess.run(without_packages, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    assert "search" in done.stdout


def test_an_error_that_the_user_can_cure_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "courier.py", "run", "nowhere", "--workspace", "/nonexistent/ws"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("courier: ")
    assert "Traceback" not in done.stderr


class NoUser(CourierError):
    """A refusal of its own name."""


@pytest.mark.parametrize("refusal", [CourierError, NoUser])
def test_a_refusal_is_one_sentence_without_a_traceback(refusal: type[CourierError], verb: Verb) -> None:
    verb(refusal("events.csv, row 3: no user_id: fill it in"))
    with pytest.raises(SystemExit, match=r"^courier: events.csv, row 3: no user_id: fill it in$"):
        courier.main(["verb"])


def test_a_file_of_the_users_that_cannot_be_opened_is_named_in_one_sentence(verb: Verb) -> None:
    verb(PermissionError(13, "Permission denied", "/raw/events.csv"))
    with pytest.raises(SystemExit, match=r"^courier: /raw/events.csv: Permission denied: give another path"):
        courier.main(["verb"])


@pytest.mark.parametrize("bug", [ValueError("events.csv: give another"), FileNotFoundError("x"), KeyError("user_id")])
def test_any_other_exception_is_a_bug_and_keeps_its_traceback(bug: Exception, verb: Verb) -> None:
    verb(bug)
    with pytest.raises(type(bug)) as raised:
        courier.main(["verb"])
    assert raised.value is bug


def test_what_tells_a_user_the_cure_is_raised_as_a_courier_error() -> None:
    told = []
    for path in sources():
        for raised in (
            node.exc for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Raise)
        ):
            if isinstance(raised, ast.Call) and isinstance(raised.func, ast.Name) and raised.func.id in OF_VALUES:
                message = "".join(map(_literal, raised.args))
                told += [f"{path.name}:{raised.lineno}: {message}"] if re.search(CURE, message) else []
    assert told == []


def test_an_exception_with_a_name_of_ours_is_a_courier_error_unless_it_tells_of_a_bug() -> None:
    ours = {
        node.name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and {base.id for base in node.bases if isinstance(base, ast.Name)} & BUILT_IN
    }
    bugs = {"NotTheSame", "RowsLost"}  # a graph that computes something else, and tables that lost rows
    assert ours == {"CourierError"} | bugs


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
    assert targets <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M))


def test_the_readmes_scripts_exist() -> None:
    scripts = set(re.findall(r"\bjobs/sequences/\w+/\w+\.py", README)) | {
        f"{name.replace('.', '/')}.py" for name in re.findall(r"-m ((?:jobs|model)\.[\w.]+)", README)
    }
    assert len(scripts) >= 3
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_the_wheel_holds_what_the_program_reads() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packed = {file for package, names in settings["package-data"].items() for file in _matches(package, names)}
    beside = (path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file())
    assert {path for path in beside if path.suffix not in (".py", ".pyc")} <= packed
    for room in ROOMS:
        assert f"{room}*" in settings["packages"]["find"]["include"]


def _matches(package: str, patterns: Sequence[str]) -> Iterator[Path]:
    return (path for one in patterns for path in ROOT.joinpath(*package.split(".")).glob(one))


def test_the_lock_pins_every_dependency() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[\w.-]+", dependency)[0].lower() for dependency in wanted} - {"courier", "faiss-gpu"}  # type: ignore[index]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lock.splitlines() if "==" in line}
    assert sorted(name for name in names if name.replace("_", "-") not in pinned) == []


def slow_and_fast_tests() -> tuple[set[str], set[str]]:
    """Every test by its id, parameters left out: with the mark `slow`, on itself or on its module, and without."""
    found: tuple[set[str], set[str]] = set(), set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        marks = [ast.unparse(node) for node in tree.body if ast.unparse(node).startswith("pytestmark = ")]
        whole = any("pytest.mark.slow" in mark for mark in marks)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marked = whole or "pytest.mark.slow" in map(ast.unparse, node.decorator_list)
                found[not marked].add(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def test_a_law_that_a_slow_test_holds_is_held_by_a_fast_one_too() -> None:
    slow, fast = slow_and_fast_tests()
    rows = re.findall(r"^\| (`tests/.+) \| (.+) \|$", _decision("0008"), flags=re.M)
    named = [[set(re.findall(r"`(tests/[^`]+::[^`]+)`", cell)) for cell in row] for row in rows]
    assert {name for left, _ in named for name in left} == slow
    assert all(right and right <= fast for _, right in named), [right - fast for _, right in named if right - fast]


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


def _literal(message: ast.expr) -> str:
    """What an expression says of itself: the text of a literal, and of an f-string the parts that stand in the code."""
    if isinstance(message, ast.JoinedStr):
        return "".join(_literal(part) if isinstance(part, ast.Constant) else "{}" for part in message.values)
    return str(message.value) if isinstance(message, ast.Constant) else ""


def _decision(number: str) -> str:
    [path] = (ROOT / "docs" / "decisions").glob(f"{number}-*.md")
    return path.read_text("utf-8")
