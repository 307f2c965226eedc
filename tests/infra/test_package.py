"""What `make package` writes is all that a machine without this repository needs, and the same for the same commit."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model import artifact

ROOT = Path(__file__).parents[2]
SITE = sysconfig.get_path("purelib")


def packaged(dist: Path) -> dict[str, Path]:
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'infra' / 'packaging')!r}); import package, pathlib;"
    code += f"package.package(pathlib.Path({str(dist)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return {path.suffix: path for path in sorted(dist.iterdir())}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("what is packaged is a commit, and this tree is of none")
    return packaged(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def stranger(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that has the libraries of this interpreter, but no courier."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    # -S: an editable install is a line in a .pth file, which only `site` reads.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', "utf-8")
    python.chmod(0o755)
    spark = Path(SITE) / "pyspark"
    path = f"{python.parent}:{spark / 'bin'}:{os.environ['PATH']}"
    kept = {name: os.environ[name] for name in ("JAVA_HOME", "HOME") if name in os.environ}
    python3 = str(python)
    environment = {**kept, "PATH": path, "PYTHONPATH": SITE, "SPARK_HOME": str(spark), "SPARK_LOCAL_IP": "127.0.0.1"}
    environment |= {"PYSPARK_PYTHON": python3, "PYSPARK_DRIVER_PYTHON": python3, "PYTHON": python3}
    asked = subprocess.run([python3, "-c", "import pyspark, jobs"], cwd=tmp_path, env=environment, capture_output=True)
    assert b"No module named 'jobs'" in asked.stderr
    return environment


def test_one_commit_has_one_package(dist, tmp_path) -> None:
    umask = os.umask(0o077)
    try:
        again = packaged(tmp_path / "again")
    finally:
        os.umask(umask)
    assert {suffix: path.read_bytes() for suffix, path in again.items()} == {
        suffix: path.read_bytes() for suffix, path in dist.items()
    }


def test_the_manifest_names_the_commit_the_files_and_the_versions(dist) -> None:
    manifest = json.loads(dist[".json"].read_text("utf-8"))
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, encoding="utf-8"
    ).stdout
    assert manifest["commit"] == head.strip()
    assert manifest["files"] == {dist[kind].name: artifact.sha256_file(dist[kind]) for kind in (".whl", ".zip")}
    assert {"pyspark", "apache-beam", "pyarrow"} <= set(manifest["locked"])


def test_the_archive_holds_every_module_and_all_that_they_read(dist) -> None:
    held = set(zipfile.ZipFile(dist[".zip"]).namelist())
    rooms = ("feature_repo", "jobs", "model", "serving", "infra/migrations")
    tracked = subprocess.run(
        ["git", "ls-files", *rooms], cwd=ROOT, check=True, capture_output=True, encoding="utf-8"
    ).stdout
    assert set(tracked.split()) <= held
    assert "courier.py" in held
    assert not [name for name in held if name.startswith("tests")]


def test_a_spark_job_is_imported_from_the_archive_alone(dist, stranger, tmp_path) -> None:
    code = "import jobs.sequences.spark.behavior_sequences as job; print(job.__file__)"
    alone = stranger | {"PYTHONPATH": f"{dist['.zip']}:{SITE}"}
    done = subprocess.run(
        [stranger["PYTHON"], "-c", code], cwd=tmp_path, env=alone, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.strip() == f"{dist['.zip']}/jobs/sequences/spark/behavior_sequences.py", done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_a_job_submitted_from_the_archive_needs_no_repository(dist, stranger, drawn_events, write_events, tmp_path):
    raw = write_events(tmp_path / "raw", drawn_events(n * 7_919_317_003 % 10**12 for n in range(150)))
    (tmp_path / "empty").mkdir()
    command = [ROOT / "infra" / "spark" / "submit.sh", "--master", "local[2]", "--archive", dist[".zip"]]
    quick = "driver.extraJavaOptions=-XX:TieredStopAtLevel=1"
    for setting in ("sql.shuffle.partitions=2", "driver.host=127.0.0.1", quick):
        command += ["--conf", f"spark.{setting}"]
    command += ["sequences.spark.behavior_sequences", "--", "--raw", raw, "--out", tmp_path / "out"]
    done = subprocess.run(
        list(map(str, command)),
        cwd=tmp_path / "empty",
        env=stranger,
        capture_output=True,
        encoding="utf-8",
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert artifact.read(tmp_path / "out", kind="sequences").facts["events_read"] == 150


def test_a_beam_job_installed_from_the_wheel_needs_no_repository(dist, stranger, tmp_path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "lib"]
    subprocess.run([*map(str, install), str(dist[".whl"])], check=True, capture_output=True)
    (tmp_path / "raw").mkdir()
    item = {"item_id": ["a"], "image_uri": ["nowhere.png"], "category": ["shirts"]}
    pq.write_table(pa.table(item), tmp_path / "raw" / "items.parquet")
    here = stranger | {"PYTHONPATH": f"{tmp_path / 'lib'}:{SITE}"}
    command = [ROOT / "infra" / "beam" / "run.sh", "images.pipeline", "--", "--raw", tmp_path / "raw"]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "out")],
        cwd=tmp_path,
        env=here,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert artifact.read(tmp_path / "out", kind="images").files


@pytest.mark.parametrize(("script", "flag"), [("spark/submit.sh", "--master"), ("beam/run.sh", "--runner")])
def test_any_master_and_any_runner_is_one_flag(dist, stranger, script, flag) -> None:
    archive = {"--master": ["--archive", dist[".zip"]], "--runner": ["--wheel", dist[".whl"]]}[flag]
    job = {"--master": "sequences.spark.behavior_sequences", "--runner": "images.pipeline"}[flag]
    command = [ROOT / "infra" / script, "--dry-run", flag, "elsewhere", *archive, "--more=a b", job, "--", "--raw", "r"]
    said = subprocess.run(
        list(map(str, command)), env=stranger, capture_output=True, encoding="utf-8", check=True
    ).stdout
    assert f"{flag} elsewhere" in said or f"{flag}=elsewhere" in said
    assert str(archive[1]) in said
    assert r"--more=a\ b" in said
    assert "--raw r" in said


@pytest.mark.parametrize("script", ["spark/submit.sh", "beam/run.sh"])
def test_what_is_missing_is_said_in_one_sentence(stranger, tmp_path, script) -> None:
    nowhere = {"spark/submit.sh": "--archive", "beam/run.sh": "--wheel"}[script]
    command = [ROOT / "infra" / script, "--runner=FlinkRunner", f"{nowhere}={tmp_path / 'nowhere'}", "any_job"]
    done = subprocess.run(list(map(str, command)), env=stranger, capture_output=True, encoding="utf-8")
    assert done.returncode == 2
    assert "make package" in done.stderr
    assert len(done.stderr.splitlines()) == 1
