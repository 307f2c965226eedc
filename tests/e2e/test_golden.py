"""Each stage makes what its revision is known to make: golden.json holds a digest of it, on a tiny generated shop.

Where a stage makes something else, its revision in jobs/stages.py is raised, and `make golden` writes the digests anew.
What is learned differs in its last bits from processor to processor: of it the form is held (files, columns, types,
rows, the names in JSON), of all else every value.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import courier
from jobs.pipeline import stage_states
from jobs.stages import STAGES
from jobs.workspace import open_workspace

GOLDEN = Path(__file__).with_name("golden.json")
WRITE = "COURIER_WRITE_GOLDEN"  # set by `make golden`
SHOP = ["--items", "60", "--users", "30", "--requests", "500"]
# Made by a model, a digest of what one made, or made by floating-point transforms of pixels.
LEARNED = {"cluster_id", "history_cluster_ids", "image_embedding", "space_id", "codebook_id", "features"}
LEARNED |= {"phash", "near_duplicate_of"}
LEARNED_STAGES = {"pretrain", "embed", "codebook", "cluster", "index", "ctr", "evaluate", "release"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The artifact of each stage of a tiny shop."""
    folder = tmp_path_factory.mktemp("golden")
    courier.main(["world", str(folder / "raw"), *SHOP])
    courier.main(["run", str(folder / "raw"), "--workspace", str(folder / "ws"), "--preset", "tiny"])
    states = stage_states(open_workspace(folder / "ws"))
    return {name: state.folder for name, state in states.items() if state.folder is not None}


def fingerprint(stage: str, folder: Path) -> str:
    """One digest of what a stage made: 16 hex digits."""
    described = {name: describe(stage, paths) for name, paths in tables_and_files(folder).items()}
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    facts = manifest["facts"] if stage not in LEARNED_STAGES else None
    exact = {name: fact for name, fact in (facts or {}).items() if name not in LEARNED and "near" not in name}
    form = {"files": described, "facts": exact, "of": form_of(manifest["facts"])}
    return hashlib.sha256(json.dumps(form, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tables_and_files(folder: Path) -> dict[str, list[Path]]:
    """What an artifact holds: each folder of parquet parts as one table, each other file by itself; no log files."""
    logs = json.loads((folder / "manifest.json").read_text("utf-8"))["log_files"]
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == "manifest.json" or name in logs:
            continue
        whole = path.parent if path.suffix == ".parquet" and path.parent != folder else path
        found.setdefault(whole.relative_to(folder).as_posix(), []).append(path)
    return found


def describe(stage: str, paths: list[Path]) -> Any:
    if paths[0].suffix == ".parquet":
        return describe_table(pa.concat_tables(pq.read_table(path) for path in paths), stage in LEARNED_STAGES)
    if paths[0].suffix == ".npy":
        array = np.load(paths[0])
        return [str(array.dtype), list(array.shape)]
    if paths[0].suffix == ".json":
        held = json.loads(paths[0].read_text("utf-8"))
        return form_of(held) if stage in LEARNED_STAGES or "coverage" in paths[0].name else held
    exact = stage not in LEARNED_STAGES and paths[0].suffix != ".html"
    return hashlib.sha256(paths[0].read_bytes()).hexdigest() if exact else "there"


def describe_table(table: pa.Table, learned: bool) -> Any:
    """Columns, types and rows; and of a table that no model made its values too, in whatever order the rows lie."""
    form = [[field.name, str(field.type)] for field in table.schema]
    if learned:
        return [form, table.num_rows if "cluster" not in table.column_names else None]
    rows = sorted(repr(row) for row in table.drop_columns([c for c in table.column_names if c in LEARNED]).to_pylist())
    return [form, hashlib.sha256("\n".join(rows).encode()).hexdigest()]


def form_of(value: Any) -> Any:
    """The names and kinds in a JSON value, without what they hold."""
    if isinstance(value, dict):
        return {name: form_of(one) for name, one in value.items()}
    if isinstance(value, list):
        return [form_of(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def disagreements(golden: Mapping[str, Any], found: Mapping[str, str], revisions: Mapping[str, int]) -> Iterator[str]:
    """What must be done for the golden digests to hold again, a sentence a stage."""
    for stage, digest in found.items():
        known = golden.get(stage, {"revision": None, "digest": None})
        if digest != known["digest"] and revisions[stage] == known["revision"]:
            yield (
                f"{stage} makes something else than its revision {known['revision']} did: raise it in jobs/stages.py, "
                "then say `make golden`"
            )
        elif revisions[stage] != known["revision"]:
            yield f"{stage} is of revision {revisions[stage]}, golden.json of {known['revision']}: say `make golden`"


REVISIONS = {stage.name: stage.revision for stage in STAGES}


def test_every_stage_makes_what_its_revision_made(made: dict[str, Path]) -> None:
    found = {name: fingerprint(name, folder) for name, folder in made.items()}
    assert found.keys() == REVISIONS.keys()
    if os.environ.get(WRITE):
        golden = {name: {"revision": REVISIONS[name], "digest": digest} for name, digest in found.items()}
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", "utf-8")
    assert list(disagreements(json.loads(GOLDEN.read_text("utf-8")), found, REVISIONS)) == []


def test_a_change_of_one_value_without_a_new_revision_is_told(made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(made["sequences"], tmp_path / "sequences")
    part = next(iter(sorted((tmp_path / "sequences" / "impressions").glob("*.parquet"))))
    table = pq.read_table(part)
    clicked = table["clicked"].to_pylist()
    clicked[0] = 1 - clicked[0]
    place = table.schema.get_field_index("clicked")
    pq.write_table(table.set_column(place, "clicked", pa.array(clicked, table.schema.field(place).type)), part)
    found = {"sequences": fingerprint("sequences", tmp_path / "sequences")}
    golden = {"sequences": {"revision": 1, "digest": fingerprint("sequences", made["sequences"])}}
    [said] = disagreements(golden, found, {"sequences": 1})
    assert said.startswith("sequences makes something else than its revision 1 did: raise it in jobs/stages.py")
    [said] = disagreements(golden, found, {"sequences": 2})
    assert said == "sequences is of revision 2, golden.json of 1: say `make golden`"
