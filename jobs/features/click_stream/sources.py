"""Where raw events come from: files, a folder that grows, Kafka; as (row, what was wrong with reading it)."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from jobs.raw.columns import COLUMNS
from jobs.raw.folder import EXPECTED, RawTableMissing, RawTableUnusable, format_of
from jobs.raw.ingest_file import check_file, rows_of
from jobs.raw.json_row import json_row
from jobs.raw.typed import CORRUPT, REASON, ROW
from model.errors import CourierError

UNREADABLE_FILE: Final = "unreadable_file"  # a reason of its own: the file's other rows are lost with it
NAMES: Final = tuple(column.name for column in COLUMNS["events"])
KAFKA: Final = re.compile(r"kafka://(?P<servers>[^/]+)/(?P<topic>[^/]+)/?")

Row = dict[str, Any]
ReadRow = tuple[Row | str, str | None]  # a row, or what stands for one, and why it is no row
Stamp = tuple[int, int]  # of a file: when it was last changed, in nanoseconds since 1970, and its size in bytes


class KafkaUnavailable(CourierError):
    """Beam's Kafka connector cannot be used here; the message is one sentence with the cure."""


@dataclass(frozen=True, slots=True)
class KafkaTopic:
    """A topic whose records' values are JSON objects with the columns of the events table."""

    servers: str  # host:port, several with commas
    topic: str
    group: str
    expansion_service: str | None = None  # host:port of Beam's Java expansion service; None: Beam starts its own


def kafka_topic(address: str, group: str, expansion_service: str | None = None) -> KafkaTopic:
    """The topic that kafka://host:port[,host:port]/topic names. Raises KafkaUnavailable where it names none."""
    found = KAFKA.fullmatch(address)
    if found is None:
        raise KafkaUnavailable(f"{address} names no topic: write it as kafka://host:9092/topic")
    return KafkaTopic(found["servers"], found["topic"], group, expansion_service)


# --- transforms -----------------------------------------------------------------------------------------------------


class ReadFiles(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Every row of these files, each file in the format that its name says."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self.files = [str(path.absolute()) for path in files]

    def expand(self, begin: Any) -> Any:
        """Begin -> PCollection of ReadRow."""
        return begin | "Files" >> beam.Create(self.files) | "Rows" >> _ReadPaths()


class ReadGrowingFolder(beam.PTransform):  # type: ignore[misc]
    """Every row of the files that lie in a folder, and of those that come, until `stop`.

    For runners that stream. Beam's local runner polls without waiting between the polls, so it is not used there:
    jobs.features.click_stream.program follows a folder by repeated passes instead.
    """

    def __init__(self, folder: Path, every: float, stop: Timestamp = MAX_TIMESTAMP) -> None:
        super().__init__()
        self.folder, self.every, self.stop = folder.absolute(), every, stop

    def expand(self, begin: Any) -> Any:
        """Begin -> PCollection of ReadRow."""
        found = begin | "Match" >> fileio.MatchContinuously(
            f"{self.folder}/*", interval=self.every, start_timestamp=Timestamp.now(), stop_timestamp=self.stop
        )
        paths = found | "Path" >> beam.Map(lambda match: match.path) | "OfEvents" >> beam.Filter(_is_of_events)
        return paths | "Rows" >> _ReadPaths()


class ReadKafka(beam.PTransform):  # type: ignore[misc]
    """The records of a Kafka topic, by Beam's own connector; each carries the moment at which it was produced."""

    def __init__(self, topic: KafkaTopic) -> None:
        super().__init__()
        self.topic = topic

    def expand(self, begin: Any) -> Any:
        """Begin -> PCollection of ReadRow. Raises KafkaUnavailable."""
        from apache_beam.io.kafka import ReadFromKafka

        consumer = {"bootstrap.servers": self.topic.servers, "group.id": self.topic.group}
        try:
            records = begin | "Records" >> ReadFromKafka(
                consumer_config={**consumer, "auto.offset.reset": "earliest"},
                topics=[self.topic.topic],
                commit_offset_in_finalize=True,
                timestamp_policy=ReadFromKafka.create_time_policy,
                expansion_service=self.topic.expansion_service,
            )
        except Exception as error:  # no Java, no jar, no service: grpc, urllib and subprocess each say it their own way
            raise KafkaUnavailable(
                f"kafka://{self.topic.servers} cannot be read: Beam's Java expansion service does not answer "
                f"({type(error).__name__}: {_line(error)}); put Java and its jar "
                "(beam-sdks-java-io-expansion-service) on this machine, or name a running one by --expansion-service"
            ) from None
        return records | "Decode" >> DecodeRecords()


def kafka_source(topic: KafkaTopic, *, local: bool) -> ReadKafka:
    """What reads a topic. local: whether the pipeline runs in this process. Raises KafkaUnavailable where it does."""
    if local:
        raise KafkaUnavailable(
            f"kafka://{topic.servers} needs a runner that streams and runs Java: name it, as in --runner=FlinkRunner"
        )
    return ReadKafka(topic)


class DecodeRecords(beam.PTransform):  # type: ignore[misc]
    """Kafka records as rows: the value is a JSON object, the key is not read."""

    def expand(self, records: Any) -> Any:
        """PCollection of (bytes, bytes) -> PCollection of ReadRow."""
        return records | "Value" >> beam.Map(_record_row)


class _ReadPaths(beam.PTransform):  # type: ignore[misc]
    def expand(self, paths: Any) -> Any:
        return paths | "Spread" >> beam.Reshuffle() | "Read" >> beam.FlatMap(_rows)


def _rows(path: str) -> Iterator[ReadRow]:
    try:
        for row in rows_of(Path(path), "events"):
            yield _read_row(row)
    except (RawTableUnusable, OSError) as error:  # a file that is gone again, or damaged in its middle
        yield str(error), UNREADABLE_FILE


def _read_row(row: Row) -> ReadRow:
    """A row of a file; where it is of no use as it was read, and the line itself where it is no row."""
    if row[REASON] is None:
        return {name: row[name] for name in NAMES}, None
    as_read = json.loads(row[ROW])
    return as_read.get(CORRUPT, as_read), row[REASON]


def _record_row(record: tuple[bytes, bytes]) -> ReadRow:
    return json_row((record[1] or b"").decode(errors="replace"), NAMES), None


# --- files ----------------------------------------------------------------------------------------------------------


def event_files(path: Path) -> list[Path]:
    """The files of events at a path: itself, or those in the folder, oldest first.

    What begins with a dot or an underscore is left out: writers put aside there what is not finished. Raises
    RawTableMissing where there is nothing at the path, RawTableUnusable for a single file of another kind.
    """
    if path.is_dir():
        return [file for file, stamp in stamps(path).items() if stamp is not None]
    if not path.exists():
        raise RawTableMissing(f"{path} does not exist: give a file or a folder of events, or kafka://host:port/topic")
    if format_of(path) is None:
        raise RawTableUnusable(f"{path} is not known as {EXPECTED}: name it .parquet, .csv or .jsonl")
    return [path]


def stamps(folder: Path) -> dict[Path, Stamp | None]:
    """Every file of events in the folder, oldest first; None for one that is gone again since it was listed."""
    listed = [file for file in folder.iterdir() if _is_of_events(str(file)) and not file.is_dir()]
    found = {file: _stamp(file) for file in listed}
    return {file: found[file] for file in sorted(listed, key=lambda file: (found[file] or (), file))}


def _stamp(file: Path) -> Stamp | None:
    try:
        facts = file.stat()
    except FileNotFoundError:
        return None
    return facts.st_mtime_ns, facts.st_size


def check(files: Sequence[Path]) -> None:
    """Raises RawTableUnusable for a file that lacks a column of the events table, or cannot be opened as one."""
    for file in files:
        check_file(file, "events")


def _is_of_events(path: str) -> bool:
    return Path(path).name[0] not in "._" and format_of(Path(path)) is not None


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200].rstrip(".")
