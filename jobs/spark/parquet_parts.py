"""Write a frame as a folder of parquet parts whose names and bytes depend on its rows alone."""

from collections.abc import Sequence
from pathlib import Path

from pyspark.sql import DataFrame


def write_parts(frame: DataFrame, folder: Path, *, by: Sequence[str], then: Sequence[str] = ()) -> None:
    """Write the frame to `folder`: rows that agree in `by` in one part, each part sorted by `by` and `then`.

    `by` and `then` together must order the rows fully. There are spark.sql.shuffle.partitions parts; empty ones go.
    """
    parts = int(frame.sparkSession.conf.get("spark.sql.shuffle.partitions") or "8")
    # By hash, not by range: ranges come from a sample, and a sample from the order in which rows happened to arrive.
    placed = frame.repartition(parts, *by).sortWithinPartitions(*by, *then)
    placed.write.mode("errorifexists").parquet(f"file://{folder.absolute()}")
    _name_plainly(folder)


def _name_plainly(folder: Path) -> None:
    # Spark's own names hold a random job id; its checksums and its marker would no longer fit.
    for path in sorted(folder.iterdir()):
        if path.name[0] in "._":
            path.unlink()
        else:
            path.rename(folder / ("-".join(path.name.split("-")[:2]) + ".parquet"))
