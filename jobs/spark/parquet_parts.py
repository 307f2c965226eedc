"""Write a frame as a folder of parquet parts whose names and bytes depend on its rows alone."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql import DataFrame


def write_parts(frame: DataFrame, folder: Path, *, by: Sequence[str], then: Sequence[str] = ()) -> None:
    """Write the frame to `folder`: rows that agree in `by` in one part, each part sorted by `by` and `then`.

    `by` and `then` together must order the rows fully. There are spark.sql.shuffle.partitions parts; empty ones go.
    """
    parts = int(frame.sparkSession.conf.get("spark.sql.shuffle.partitions") or "8")
    # By hash, not by range: ranges come from a sample, and a sample from the order in which rows happened to arrive.
    placed = frame.repartition(parts, *by).sortWithinPartitions(*by, *then)
    placed.write.mode("errorifexists").parquet(f"file://{folder.absolute()}")
    for path in sorted(folder.iterdir()):
        if path.name[0] not in "._":  # Spark's checksums and its marker would no longer fit
            _settle(path)
        path.unlink()


def _settle(part: Path) -> None:
    """Write the part again beside itself, under a name without Spark's random job id."""
    # Spark's footers list a column's encodings in the order of a hash set: another one in every Java process.
    settled = part.with_name("-".join(part.name.split("-")[:2]) + ".parquet")
    with pq.ParquetFile(part) as source, pq.ParquetWriter(settled, source.schema_arrow.remove_metadata()) as sink:
        for group in range(source.num_row_groups):
            sink.write_table(source.read_row_group(group))
