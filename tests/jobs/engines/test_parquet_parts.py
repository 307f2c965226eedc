"""The parts of a table are the same bytes, however its rows came about."""

from pathlib import Path

import pyarrow.parquet as pq


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_rows_just_aggregated_lie_in_the_parts_of_their_keys_like_any_others(production_spark, tmp_path) -> None:
    from pyspark.sql import functions as F

    from jobs.engines.parquet_parts import write_parts

    rows = [(f"u{n % 20}", n) for n in range(60)]
    frame = production_spark.createDataFrame(rows, "user_id string, n int")
    last = production_spark.createDataFrame(rows[40:], "user_id string, n int")
    write_parts(frame.groupBy("user_id").agg(F.max("n").alias("n")), tmp_path / "one", by=["user_id"])
    write_parts(last.orderBy(F.desc("n")), tmp_path / "other", by=["user_id"])
    assert files(tmp_path / "one") == files(tmp_path / "other")
    assert len(files(tmp_path / "one")) > 1
    assert pq.read_table(tmp_path / "one").num_rows == 20


def test_parts_written_apart_are_those_of_each_values_rows_alone(production_spark, tmp_path) -> None:
    from pyspark.sql import functions as F

    from jobs.engines.parquet_parts import write_parts, write_parts_apart

    rows = [(f"u{n % 20}", n, n % 3) for n in range(60)]
    frame = production_spark.createDataFrame(rows, "user_id string, n int, day int")
    write_parts_apart(frame, tmp_path / "all", apart="day", by=["user_id"], then=["n"])
    for day in range(3):
        alone = frame.filter(F.col("day") == day).drop("day")
        write_parts(alone, tmp_path / str(day), by=["user_id"], then=["n"])
        written, expected = files(tmp_path / "all" / f"day={day}"), files(tmp_path / str(day))
        assert {name: data for name, data in expected.items() if name in written} == written
        assert all(not pq.read_metadata(tmp_path / str(day) / name).num_rows for name in expected.keys() - written)
