"""Rows in parts on disk, against a plain dictionary."""

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.features.row_parts import NUMBER, PART, RowParts

SCHEMA = pa.schema([("words", pa.list_(pa.string())), (NUMBER, pa.int64()), (PART, pa.int32())])


def rows_of(numbers, part_of):
    return [{"words": [str(n)] * (n % 3) or None, NUMBER: n, PART: part_of(n)} for n in numbers]


@given(
    order=st.permutations(range(30)),
    cuts=st.sets(st.integers(1, 29)),
    parts=st.integers(1, 7),
    asked=st.lists(st.integers(0, 29), min_size=1),
)
def test_rows_come_back_in_the_order_asked_for_however_they_were_appended(tmp_path_factory, order, cuts, parts, asked):
    files = RowParts(tmp_path_factory.mktemp("parts") / "rows")
    for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), 30], strict=True):
        files.append(pa.Table.from_pylist(rows_of(order[first:last], lambda n: n % parts), schema=SCHEMA))
    wanted = sorted({n % parts for n in asked})
    found = files.rows(pa.chunked_array([pa.array(asked, pa.int64())]), wanted)
    assert found.column_names == ["words"]
    assert found.column("words").to_pylist() == [[str(n)] * (n % 3) or None for n in asked]


def test_a_part_is_read_once_while_it_is_asked_for_and_let_go_when_it_is_not(tmp_path):
    read = Counter()

    def noted(rows):
        read[rows.column(NUMBER).to_pylist()[0]] += 1
        return rows

    files = RowParts(tmp_path / "rows", noted)
    files.append(pa.Table.from_pylist(rows_of(range(3), lambda n: n), schema=SCHEMA))
    for parts in ([0], [0, 1], [1], [1, 2], [2], [0]):
        files.rows(pa.chunked_array([pa.array(parts, pa.int64())]), parts)
    assert read == {0: 2, 1: 1, 2: 1}


def test_what_is_done_to_a_part_when_it_is_read_is_seen_in_its_rows(tmp_path):
    files = RowParts(tmp_path / "rows", lambda rows: rows.append_column("more", pa.array(range(len(rows)))))
    files.append(pa.Table.from_pylist(rows_of([4, 2], lambda _: 9), schema=SCHEMA))
    assert files.rows(pa.chunked_array([pa.array([2, 4])]), [9]).column("more").to_pylist() == [1, 0]


def test_a_part_that_nothing_was_appended_to_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        RowParts(tmp_path / "rows").rows(pa.chunked_array([pa.array([0])]), [0])


def test_a_number_that_is_in_none_of_the_parts_is_an_error_and_no_row_of_nulls(tmp_path):
    files = RowParts(tmp_path / "rows")
    files.append(pa.Table.from_pylist(rows_of([4, 2], lambda n: n), schema=SCHEMA))
    with pytest.raises(KeyError, match=r"1 of 2 rows are in none of the parts \[4\]"):
        files.rows(pa.chunked_array([pa.array([4, 2])]), [4])
