"""How much of a catalogue has a usable picture, as JSON and as one self-contained page; made from an images artifact.

Read in its folder: items.parquet, rejected.parquet, shards/*.parquet (image_id, image), and where they are there
placeholders.parquet (image_id, image, items: int, categories: list, first_item_id), read.json (items_read) and
near_duplicates.json (not_compared). The facts of pictures (width, height, mode, frames) are columns of items.parquet
that an older artifact lacks, and so are near_duplicate_of: the first item of a group of near-duplicates, null for that
item itself; and stale: why a picture that is kept could not be looked at again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import structlog

from jobs.html.coverage import render
from jobs.paths import arrow_source
from jobs.rules.items import SENTENCES, STATUSES
from model import artifact, strict_json
from model.artifact import AnyPath
from model.errors import CourierError

log = structlog.get_logger()

EXAMPLES: Final = 6  # of a reason, and pictures of a group
GROUPS: Final = 20
GALLERY: Final = 12  # usable pictures
LINES: Final = 1000  # categories and sources
CHARACTERS: Final = 160  # of a reference or a row

COLUMNS: Final = ("item_id", "image_uri", "image_id", "status", "reason", "category", "title", "duplicate_of")
FACTS: Final = ("width", "height", "mode", "frames", "near_duplicate_of", "stale")
# A scheme and a host; whoever stands before an @ is nobody's business.
SOURCE: Final = r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#]*@)?(?P<host>[^/?#]*)"
SECRETS: Final = ((r"://[^/?#\s\"]*@", "://...@"), (r"\?[^\s\"]*", "?..."))  # names, and signatures in queries

PICTURE: Final = [("image_id", pa.string()), ("image", pa.binary())]

Row = dict[str, Any]


class CoverageWrong(CourierError):
    """The tables of an images artifact contradict each other; the message says how."""


def write_coverage(folder: AnyPath) -> dict[str, Any]:
    """Write coverage.json and coverage.html into the folder of an images artifact; returns what the JSON holds.

    The same tables give the same bytes. Raises CoverageWrong if the rows read are not those accepted and rejected.
    """
    found = coverage(folder)
    page = render(found, _pictures(folder, _wanted(found)))
    artifact.write_whole(
        folder / "coverage.json", (strict_json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode()
    )
    artifact.write_whole(folder / "coverage.html", page.encode())
    return found


def tell_lost(found: Mapping[str, Any]) -> None:
    """Log why items have no usable picture: a line a reason, with its cure, however many items it meets.

    found: what coverage.json holds.
    """
    for reason, items in found["by_reason"].items():
        named = [one["image_uri"] for one in found["examples"][reason] if one["image_uri"] is not None]
        example = {"example": _visible(named[0])} if named else {}
        of = found["rows"]["accepted"]
        log.warning("pictures_lost", reason=reason, items=items, of=of, why=SENTENCES[reason], **example)


def _visible(text: str) -> str:
    """With what a terminal would not show, or would obey, spelt out."""
    return text if text.isprintable() else repr(text)[1:-1]


def coverage(folder: AnyPath) -> dict[str, Any]:
    """Every figure and every example of the report, pictures by their id. Raises CoverageWrong."""
    items, rejected = _items(folder), _table(folder / "rejected.parquet")
    failed = items.filter(pc.not_equal(items["reason"], ""))
    shown = _first_items(folder)
    return {
        "rows": _rows(folder, len(items), len(rejected)),
        "by_status": dict.fromkeys(STATUSES, 0) | _counts(items, "status"),
        "by_reason": _counts(failed, "reason"),
        "stale_by_reason": _stale(items),
        "rejected_by_reason": _counts(rejected, "reason"),
        "by_category": _lines(items, "category"),
        "reasons_by_category": _lines(failed, "category", "reason"),
        "by_source": _lines(items.append_column("source", _sources(items["image_uri"])), "source"),
        "pictures": _picture_facts(items) | _not_compared(folder),
        "gallery": _gallery(folder, items),
        "near_duplicate_groups": _near_groups(items),
        "placeholders": _placeholders(folder),
        "examples": {reason: _examples(failed, reason, shown) for reason in _counts(failed, "reason")},
        "rejected_examples": {reason: _raw_rows(rejected, reason) for reason in _counts(rejected, "reason")},
    }


# --- counts ---------------------------------------------------------------------------------------------------------


def _items(folder: AnyPath) -> pa.Table:
    where, files = arrow_source(folder / "items.parquet")
    held = pq.read_schema(where, filesystem=files).names
    return _table(folder / "items.parquet", [name for name in (*COLUMNS, *FACTS) if name in held])


def _table(path: AnyPath, columns: Sequence[str] | None = None) -> pa.Table:
    where, files = arrow_source(path)
    return pq.read_table(where, columns=columns, filesystem=files)


def _rows(folder: AnyPath, accepted: int, rejected: int) -> dict[str, int]:
    counted = folder / "read.json"
    read = json.loads(counted.read_text("utf-8"))["items_read"] if counted.exists() else accepted + rejected
    if read != accepted + rejected:
        raise CoverageWrong(
            f"{folder}: {read} rows were read, {accepted} accepted and {rejected} rejected: build the images anew"
        )
    return {"read": read, "accepted": accepted, "rejected": rejected}


def _counts(table: pa.Table, name: str) -> dict[str, int]:
    """Value -> number of rows, the most frequent first."""
    counted = table.group_by(name).aggregate([([], "count_all")])
    counted = counted.sort_by([("count_all", "descending"), (name, "ascending")])
    return dict(zip(counted[name].to_pylist(), counted["count_all"].to_pylist(), strict=True))


def _lines(items: pa.Table, name: str, cell: str = "status") -> dict[str, Any]:
    """For each of the LINES most frequent values: how many items, and how many of each cell; null comes as None."""
    keyed = pa.table({"key": items[name], "cell": items[cell]})
    totals = keyed.group_by("key").aggregate([([], "count_all")])
    totals = totals.sort_by([("count_all", "descending"), ("key", "ascending")]).slice(0, LINES)
    common = keyed.filter(pc.is_in(keyed["key"], value_set=totals["key"].combine_chunks()))
    cells = common.group_by(["key", "cell"]).aggregate([([], "count_all")]).to_pylist()
    lines = {row["key"]: {"name": row["key"], "items": row["count_all"]} for row in totals.to_pylist()}
    for row in cells:
        lines[row["key"]][row["cell"]] = row["count_all"]
    return {"values": pc.count_distinct(keyed["key"], mode="all").as_py(), "lines": list(lines.values())}


def _stale(items: pa.Table) -> dict[str, int]:
    if "stale" not in items.column_names:
        return {}
    return _counts(items.filter(pc.is_valid(items["stale"])), "stale")


def _not_compared(folder: AnyPath) -> dict[str, int]:
    """Pairs of pictures that the search for near-duplicates left out."""
    path = folder / "near_duplicates.json"
    return {"near_not_compared": json.loads(path.read_text("utf-8"))["not_compared"]} if path.exists() else {}


def _sources(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """The scheme and host of each reference, in small letters."""
    parts = pc.extract_regex(uris, pattern=SOURCE)
    scheme, host = (pc.utf8_lower(pc.struct_field(parts, name)) for name in ("scheme", "host"))
    source = pc.binary_join_element_wise(scheme, host, "://")
    return pc.if_else(pc.is_null(uris), "no reference", pc.fill_null(source, "relative path"))


def _picture_facts(items: pa.Table) -> dict[str, Any]:
    facts = {
        "distinct": pc.count_distinct(items["image_id"]).as_py(),
        "exact_duplicates": len(items) - items["duplicate_of"].null_count,
    }
    if "near_duplicate_of" in items.column_names:
        near = items["near_duplicate_of"]
        facts |= {"near_duplicates": len(near) - near.null_count, "near_groups": pc.count_distinct(near).as_py()}
    pictures = items.filter(pc.and_(pc.is_valid(items["image_id"]), _alone(items)))
    if "mode" in items.column_names and len(pictures):
        facts |= {
            "modes": _counts(pictures, "mode"),
            "animated": pc.sum(pc.greater(pictures["frames"], 1)).as_py() or 0,
        }
        facts |= {side: _spread(pictures[side]) for side in ("width", "height")}
    return facts


def _spread(pixels: pa.ChunkedArray) -> dict[str, float]:
    smallest, median, largest = pc.quantile(pixels, q=[0.0, 0.5, 1.0], interpolation="nearest").to_pylist()
    return {"smallest": smallest, "median": median, "largest": largest}


# --- examples -------------------------------------------------------------------------------------------------------


def _examples(failed: pa.Table, reason: str, shown: Mapping[str, str]) -> list[Row]:
    """Some items of a reason: with an image_id where there is a picture of it, and those first."""
    rows = failed.filter(pc.equal(failed["reason"], reason))
    first = pc.is_in(rows["item_id"], value_set=pa.array(shown, pa.string()))
    rows = pa.concat_tables([rows.filter(first), rows.filter(pc.invert(first))]).slice(0, EXAMPLES)
    return [
        {"item_id": row["item_id"], "image_uri": _safe(row["image_uri"])}
        | ({"image_id": shown[row["item_id"]]} if row["item_id"] in shown else {})
        for row in rows.to_pylist()
    ]


def _first_items(folder: AnyPath) -> dict[str, str]:
    """item_id -> image_id: of each "no image" picture the first item that shows it."""
    path = folder / "placeholders.parquet"
    if not path.exists():
        return {}
    table = _table(path)
    if "first_item_id" not in table.column_names:
        return {}
    return dict(zip(table["first_item_id"].to_pylist(), table["image_id"].to_pylist(), strict=True))


def _raw_rows(rejected: pa.Table, reason: str) -> list[str | None]:
    rows = rejected.filter(pc.equal(rejected["reason"], reason)).slice(0, EXAMPLES)
    return [_safe(row) for row in rows["row"].to_pylist()]


def _safe(text: str | None) -> str | None:
    """A reference or a row as it may be shown to anybody: short, without names, passwords and signatures."""
    if text is None:
        return None
    for pattern, instead in SECRETS:
        text = pc.replace_substring_regex(text, pattern=pattern, replacement=instead).as_py()
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"


def _gallery(folder: AnyPath, items: pa.Table) -> list[Row]:
    """The first pictures of the shards, each with the first item that shows it.

    Ids are hashes, and so the first ones are as good as drawn by lot.
    """
    ids: list[str] = []
    for shard in _shards(folder):
        where, files = arrow_source(shard)
        batch = next(pq.ParquetFile(where, filesystem=files).iter_batches(GALLERY, columns=["image_id"]), None)
        ids += [] if batch is None else batch["image_id"].to_pylist()
        if len(ids) >= GALLERY:
            break
    first = pc.and_(pc.is_in(items["image_id"], value_set=pa.array(ids[:GALLERY], pa.string())), _alone(items))
    rows = (
        items.filter(first)
        .select(["image_id", "item_id", "title", "category"])
        .sort_by("image_id")
        .slice(0, GALLERY)
        .to_pylist()
    )
    return [dict(row) for row in rows]


def _alone(items: pa.Table) -> pa.ChunkedArray:
    """Whether an item is the first of those that show its very picture."""
    return pc.is_null(items["duplicate_of"])


def _near_groups(items: pa.Table) -> list[Row]:
    """The largest groups: named after their first item, with some of their distinct pictures."""
    if "near_duplicate_of" not in items.column_names:
        return []
    groups = list(_counts(items.filter(pc.is_valid(items["near_duplicate_of"])), "near_duplicate_of").items())[:GROUPS]
    found = []
    for first, others in groups:
        named, near = pc.equal(items["item_id"], first), pc.equal(items["near_duplicate_of"], first)
        of_group = items.filter(pc.or_kleene(named, near))
        pictures = of_group.group_by("image_id").aggregate([("item_id", "min"), ("item_id", "count")])
        pictures = pictures.sort_by([("item_id_count", "descending"), ("item_id_min", "ascending")])
        rows = pictures.slice(0, EXAMPLES).rename_columns(["image_id", "item_id", "items"]).to_pylist()
        found.append({"first_item_id": first, "items": others + 1, "pictures": len(pictures), "examples": rows})
    return found


def _placeholders(folder: AnyPath) -> list[Row]:
    """The "no image" pictures that the most items share."""
    path = folder / "placeholders.parquet"
    if not path.exists():
        return []
    table = _table(path, ["image_id", "items", "categories"])
    table = table.set_column(2, "categories", pc.list_value_length(table["categories"]))
    rows = table.sort_by([("items", "descending"), ("image_id", "ascending")]).slice(0, GROUPS).to_pylist()
    return [dict(row) for row in rows]


# --- pictures -------------------------------------------------------------------------------------------------------


def _wanted(found: Mapping[str, Any]) -> list[str]:
    rows: list[Row] = [*found["gallery"], *found["placeholders"]]
    rows += [row for group in found["near_duplicate_groups"] for row in group["examples"]]
    rows += [row for examples in found["examples"].values() for row in examples if "image_id" in row]
    return sorted({row["image_id"] for row in rows if row["image_id"]})


def _shards(folder: AnyPath) -> list[AnyPath]:
    found: Iterator[AnyPath] = (folder / "shards").glob("*.parquet")
    return sorted(found, key=str)


def _pictures(folder: AnyPath, image_ids: Sequence[str]) -> dict[str, bytes]:
    """Those of these pictures that the shards and placeholders.parquet hold: image_id -> PNG."""
    paths = [*_shards(folder), folder / "placeholders.parquet"]
    _, files = arrow_source(folder)
    there = [arrow_source(path)[0] for path in paths if path.exists()]
    held = ds.dataset(there, schema=pa.schema(PICTURE), filesystem=files)
    # Sorted by id within each file, so that most row groups are passed over by their statistics.
    table = held.to_table(filter=pc.field("image_id").isin(pa.array(image_ids, pa.string())))
    return dict(zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True))
