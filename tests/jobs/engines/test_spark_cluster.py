"""On a real Spark cluster the sequences are the same bytes as here: a day at a time, and though a worker is lost."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pyspark
import pytest

from jobs.config import SequencesConfig
from jobs.raw.canonical import canonical_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # the clock of a busy machine says little
ROOT = Path(__file__).parents[3]
SPARK = Path(pyspark.__file__).parent
HERE = "127.0.0.1"
LOST = {"ExecutorLostFailure", "FetchFailed", "Resubmitted"}
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # a short life needs neither the second compiler nor more threads
SETTINGS = {
    "spark.driver.host": HERE,
    "spark.driver.bindAddress": HERE,
    "spark.executor.memory": "512m",
    "spark.executor.extraJavaOptions": QUICK,
    "spark.driver.extraJavaOptions": QUICK,
    "spark.executor.cores": "1",
    "spark.sql.shuffle.partitions": "8",  # the parts that a table is cut into, as on one machine
    "spark.eventLog.enabled": "true",
    "spark.eventLog.compress": "false",
    "spark.eventLog.rolling.enabled": "false",
    "spark.shuffle.io.retryWait": "1s",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A standalone cluster: its address, its page, and the processes of its workers, each the leader of a group."""

    url: str
    page: str  # what the master says of itself, in JSON
    workers: list[subprocess.Popen[bytes]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One master and two workers of one core each; gone, with all that they started, when the test ends."""
    port, page = free_port(), free_port()
    address, home = f"spark://{HERE}:{port}", tmp_path / "cluster"
    with (
        started("master.Master", "--host", HERE, "--port", port, "--webui-port", page, log=home / "master"),
        started("worker.Worker", *worker(home / "one"), address, log=home / "one") as one,
        started("worker.Worker", *worker(home / "two"), address, log=home / "two") as two,
    ):
        alive = f"http://{HERE}:{page}/json/"
        wait_for(lambda: answer(alive).get("aliveworkers") == 2, "two workers have joined the master", one, two)
        yield Cluster(address, alive, [one, two])


def worker(home: Path) -> list[object]:
    return ["--host", HERE, "--cores", 1, "--memory", "1g", "--webui-port", 0, "--work-dir", home / "work"]


@contextmanager
def started(kind: str, *arguments: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    log.mkdir(parents=True)
    command = [SPARK / "bin" / "spark-class", f"org.apache.spark.deploy.{kind}", *map(str, arguments)]
    environment = os.environ | {"SPARK_LOCAL_DIRS": str(log / "local"), "SPARK_LOCAL_IP": HERE}
    environment |= {"SPARK_DAEMON_JAVA_OPTS": QUICK, "SPARK_DAEMON_MEMORY": "256m"}
    with (log / "out.txt").open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            yield process
        finally:
            end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it started: a worker's executors are of its group."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port below those of which the system gives one to whoever asks for any, as workers do at the same time."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HERE, port))
            return port
    raise AssertionError("a hundred ports are all taken")


def answer(url: str) -> Any:
    """What a page of Spark's says in JSON; empty while nobody answers, or only that it is about to."""
    try:
        with urllib.request.urlopen(url, timeout=10) as page:
            return json.load(page)
    except (urllib.error.URLError, ConnectionError, TimeoutError, json.JSONDecodeError):
        return {}


def wait_for(condition: Callable[[], Any], what: str, *processes: subprocess.Popen[bytes]) -> Any:
    """What the condition first finds, as long as all the processes that it is about run."""
    while all(process.poll() is None for process in processes):
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"a process ended before it came about that {what}")


def submit(cluster: Cluster, log: Path, page: int, job: str, *options: object) -> list[object]:
    """The command by which an operator submits a job to the cluster. log: a folder for Spark's own log of events."""
    settings = SETTINGS | {"spark.ui.port": str(page), "spark.eventLog.dir": log.as_uri()}
    conf = [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    program = (ROOT / "jobs" / job.replace(".", "/")).with_suffix(".py")
    return [SPARK / "bin" / "spark-submit", "--master", cluster.url, *conf, program, *options]


@contextmanager
def running(command: list[object], log: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process, in the folder `log`; what it says goes to a file beside that."""
    log.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": HERE}
    environment |= {"PYSPARK_DRIVER_PYTHON": sys.executable, **more}
    with log.with_suffix(".txt").open("wb") as said:
        process = subprocess.Popen(
            list(map(str, command)), cwd=log, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            yield process
        finally:
            end_group(process)


def busy_worker(cluster: Cluster, page: int, job: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], str]:
    """A worker, stopped in the middle of a task and holding results that others need, and its executor's id."""
    return wait_for(lambda: stopped_at_work(cluster, page), "an executor works and has written for others", job)


def stopped_at_work(cluster: Cluster, page: int) -> tuple[subprocess.Popen[bytes], str] | None:
    for executor in executors(page):
        owner = owner_of(executor["id"], cluster) if is_at_work(executor) else None
        if owner is None:
            continue
        os.killpg(owner.pid, signal.SIGSTOP)  # so that what is true now is true when it is killed
        again = [one for one in executors(page) if one["id"] == executor["id"] and is_at_work(one)]
        if again:
            return owner, executor["id"]
        os.killpg(owner.pid, signal.SIGCONT)
    return None


def executors(page: int) -> list[dict[str, Any]]:
    applications = answer(f"http://{HERE}:{page}/api/v1/applications")
    [name] = [one["id"] for one in applications] or [""]
    return answer(f"http://{HERE}:{page}/api/v1/applications/{name}/executors") or [] if name else []


def is_at_work(executor: dict[str, Any]) -> bool:
    return executor["id"] != "driver" and executor["activeTasks"] > 0 and executor["totalShuffleWrite"] > 0


def owner_of(executor: str, cluster: Cluster) -> subprocess.Popen[bytes] | None:
    for one in cluster.workers:
        commands = [words_of(child) for child in psutil.Process(one.pid).children(recursive=True)]
        if any(["--executor-id", executor] == words[at : at + 2] for words in commands for at in range(len(words))):
            return one
    return None


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; nothing of one that has just ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a zombie is one too
        return []


def losses(log: Path) -> list[dict[str, Any]]:
    """The event log's tasks that failed with their executor, or were run again because it took their results along."""
    return [one for one in task_ends(log) if one["Task End Reason"]["Reason"] in LOST]


def task_ends(log: Path) -> list[dict[str, Any]]:
    """The tasks of Spark's own log of events."""
    [file] = [path for path in log.iterdir() if path.is_file()]
    events = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [one for one in events if one["Event"] == "SparkListenerTaskEnd"]


@pytest.mark.usefixtures("production_spark")
def test_a_cluster_that_loses_a_worker_in_the_middle_writes_the_same_bytes(
    cluster: Cluster, drawn_events: Any, write_events: Any, tmp_path: Path
) -> None:
    from jobs.sequences.spark.behavior_sequences import build
    from model import artifact

    raw = write_events(tmp_path / "raw", drawn_events(n * 7_919_317_003 % 10**12 for n in range(20_000)))
    page, log = free_port(), tmp_path / "log"
    job_and_options = (
        "sequences.spark.behavior_sequences",
        "--raw",
        raw,
        "--out",
        tmp_path / "far",
        "--page-view-size",
        "3",
    )
    with running(submit(cluster, log, page, *job_and_options), log) as job:
        victim, executor = busy_worker(cluster, page, job)
        end_group(victim)
        status = job.wait()
    assert status == 0, log.with_suffix(".txt").read_text("utf-8")[-4000:]
    lost = losses(log)
    assert executor in {one["Task Info"]["Executor ID"] for one in lost}
    given = {"events": canonical_table(raw, "events"), "sampled_negatives": False, "inputs": {}}
    near = build(**given, out=tmp_path / "near", config=SequencesConfig(page_view_size=3))
    far = artifact.read(tmp_path / "far", kind="sequences")
    assert far.files == near.files
    assert len(far.files) > 8


def run_to_its_end(command: list[object], log: Path, **more: str) -> None:
    with running(command, log, **more) as job:
        status = job.wait()
    assert status == 0, log.with_suffix(".txt").read_text("utf-8")[-4000:]


def days_of(workspace: Path) -> dict[str, object]:
    """The files and findings of every day of the log, and what the watermark says."""
    from model import artifact

    days = sorted((workspace / "days").glob("2024-*"))
    manifests = {day.name: artifact.read(day, kind="day") for day in days}
    mark = json.loads((workspace / "days" / "watermark.json").read_text("utf-8"))
    mark.pop("as_of")  # the clock of each run
    return {"watermark": mark} | {name: (one.files, one.facts) for name, one in manifests.items()}


def application_names(cluster: Cluster) -> list[str]:
    """The programs that the cluster has worked for."""
    return sorted(one["name"] for one in answer(cluster.page)["completedapps"])


@pytest.mark.usefixtures("production_spark")
def test_days_added_on_a_cluster_have_the_bytes_of_days_added_here(
    cluster: Cluster, drawn_events: Any, write_events: Any, tmp_path: Path
) -> None:
    from jobs.sequences.daily.build import add_days

    raw = write_events(tmp_path / "raw", drawn_events(n * 7_919_317_003 % 10**12 for n in range(600)))
    near, far, settings = tmp_path / "near", tmp_path / "far", tmp_path / "settings"
    days = {"start": date(2024, 3, 1), "end": date(2024, 3, 4)}
    given = {"events": canonical_table(raw, "events"), "sampled_negatives": False}
    add_days(**given, workspace=near, **days, config=SequencesConfig(), engine="spark")
    settings.mkdir()  # what spark-submit takes as --conf, any other program finds here
    told = {name: value for name, value in SETTINGS.items() if "eventLog" not in name}
    (settings / "spark-defaults.conf").write_text("".join(f"{name} {value}\n" for name, value in told.items()), "utf-8")
    begin = [sys.executable, "-m", "courier", "sequences", raw, "--workspace", far, "--master", cluster.url]
    begin += ["--from", "2024-03-01", "--to", "2024-03-03"]
    run_to_its_end(begin, tmp_path / "begin", SPARK_CONF_DIR=str(settings))
    options = ("--raw", raw, "--workspace", far, "--date", "2024-03-04")
    log = tmp_path / "one_more"
    run_to_its_end(submit(cluster, log, free_port(), "sequences.daily.build", *options), log)
    wait_for(lambda: len(application_names(cluster)) == 2, "both programs have left the cluster", *cluster.workers)
    assert application_names(cluster) == ["courier sequences", "courier sequences"]
    assert days_of(far) == days_of(near)
    assert len(days_of(far)) == 5


@pytest.mark.usefixtures("production_spark")
def test_two_workers_read_a_bucket_and_write_the_bytes_of_a_folder(
    bucket: Any, cluster: Cluster, drawn_events: Any, write_events: Any, tmp_path: Path
) -> None:
    from jobs.sequences.spark.behavior_sequences import build
    from model import artifact

    raw = write_events(tmp_path / "raw", drawn_events(n * 7_919_317_003 % 10**12 for n in range(5_000)))
    whole = pq.read_table(raw / "events.parquet")
    for part in range(4):  # a task each
        with (bucket / "raw" / "events" / f"{part}.parquet").open("wb") as file:
            pq.write_table(whole.slice(part * 1250, 1250), file)
    log, page = tmp_path / "log", free_port()
    job = ("sequences.spark.behavior_sequences", "--raw", bucket / "raw", "--out", tmp_path / "far")
    run_to_its_end(submit(cluster, log, page, *job, "--as-of", "2026-01-01T00:00Z"), log)
    events = canonical_table(raw, "events")
    given = {"events": events, "sampled_negatives": False, "inputs": {}, "as_of": datetime(2026, 1, 1, tzinfo=UTC)}
    near = build(**given, out=tmp_path / "near", config=SequencesConfig())
    far = artifact.read(tmp_path / "far", kind="sequences")
    assert far.files == near.files
    assert len(far.files) > 8
    assert {one["Task Info"]["Executor ID"] for one in task_ends(log)} == {"0", "1"}
