"""Which columns of a raw file are the contract's: by their own names, or as the user says that they are called."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from feature_repo.contract import EVENTS, ITEMS
from jobs.raw.folder import RawTableUnusable, TableFiles, told_by_folders
from model.artifact import AnyPath

COLUMNS: Final = {"events": EVENTS, "items": ITEMS}
# Without these a table of columns is of no use; any other may be absent as a whole, as if it were null in every row.
NEEDED: Final = {"events": tuple(column.name for column in EVENTS), "items": ("item_id", "image_uri")}
# JSON writers often leave a null out, so only the columns that must have values are looked for.
ALWAYS: Final = {name: tuple(c.name for c in columns if not c.nullable) for name, columns in COLUMNS.items()}
# What other systems call them; only ever proposed, never taken without being told.
OTHER_NAMES: Final = {
    "user_id": (
        "visitorid",
        "visitor",
        "customer",
        "customerid",
        "client",
        "uid",
        "user",
        "userid",
        "member",
        "cookie",
    ),
    "item_id": (
        "item",
        "itemid",
        "product",
        "productid",
        "sku",
        "asin",
        "article",
        "articleid",
        "offer",
        "goods",
        "pid",
    ),
    "event_time": ("timestamp", "time", "ts", "at", "date", "datetime", "eventtimestamp", "occurredat", "created"),
    "event_type": ("event", "type", "action", "behavior", "behaviour", "eventname", "kind"),
    "request_id": ("request", "impressionid", "pageview", "pageviewid", "searchid", "queryid", "session", "sessionid"),
    "position": ("rank", "pos", "slot", "place", "index"),
    "image_uri": ("image", "img", "imageurl", "imurl", "picture", "photo", "thumbnail", "imagepath", "imagelink"),
}

Names = Mapping[str, str]  # the contract's name of a column -> what the files call it, where they call it otherwise


def placed(file: AnyPath, table: str, present: Sequence[str], names: Names, needed: Sequence[str]) -> dict[str, int]:
    """The place among `present` of each of the contract's columns that is there.

    A column is there by its name, whatever the case of its letters.  names: what is called otherwise.
    Raises RawTableUnusable where one is there twice, or one of `needed` is not.
    """
    found: dict[str, int] = {}
    for column in (column.name for column in COLUMNS[table]):
        wanted = names.get(column, column)
        exact = [place for place, name in enumerate(present) if name == wanted]
        alike = [place for place, name in enumerate(present) if name.strip().lower() == wanted.lower()]
        if len(exact) > 1:
            raise RawTableUnusable(f"{file} has the column {wanted} {len(exact)} times: keep one of them")
        if len(alike) > 1:
            both = " and ".join(sorted(present[place] for place in alike))
            raise RawTableUnusable(f"{file} has the columns {both}, and either could be {column}: rename one")
        if alike:
            found[column] = alike[0]
    _require(file, present, [name for name in needed if name not in found], needed, names)
    return found


def known(table: str, present: Sequence[str], names: Names) -> int:
    """How many of the contract's columns are among `present`."""
    wanted = {names.get(column.name, column.name).lower() for column in COLUMNS[table]}
    return len(wanted & {name.strip().lower() for name in present})


def parse_names(said: Iterable[str]) -> dict[str, dict[str, str]]:
    """What --columns says, by table: `user_id=visitorid` of each that has the column, `items.item_id=sku` of one.

    Raises RawTableUnusable for no column of ours.
    """
    everywhere, of_one = dict[str, str](), {table: dict[str, str]() for table in COLUMNS}
    ours = {table: {column.name for column in columns} for table, columns in COLUMNS.items()}
    known = set().union(*ours.values(), *({f"{table}.{name}" for name in names} for table, names in ours.items()))
    for pair in said:
        column, equals, name = (part.strip() for part in pair.partition("="))
        if not (equals and name):
            raise RawTableUnusable(f"--columns {pair!r} is no pair: say user_id=visitorid,item_id=sku")
        if column not in known:
            near = difflib.get_close_matches(column, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"say one of {', '.join(sorted(known))}"
            raise RawTableUnusable(f"--columns {pair!r} names no column of the raw tables: {hint}")
        table, dot, plain = column.partition(".")
        if dot:
            of_one[table][plain] = name
        else:
            everywhere[column] = name
    return {
        table: {column: name for column, name in everywhere.items() if column in ours[table]} | named
        for table, named in of_one.items()
    }


def told_columns(table: TableFiles, file: AnyPath, names: Names) -> dict[str, str | None]:
    """The columns of ours that the names of a file's folders tell. names: what they call otherwise."""
    told = told_by_folders(table, file)
    for column in (column.name for column in COLUMNS[table.name]):
        if names.get(column, column) in told:
            told[column] = told.pop(names.get(column, column))
    return told


def _require(
    file: AnyPath, present: Sequence[str], missing: Sequence[str], needed: Sequence[str], names: Names
) -> None:
    if not missing:
        return
    if not present:
        raise RawTableUnusable(
            f"{file} is empty and has no column {missing[0]}: write it again, with {','.join(needed)}"
        )
    there = ", ".join(_shown(one) for one in present[:20])
    if told := [name for name in missing if name in names]:
        raise RawTableUnusable(
            f"{file} has no column {_shown(names[told[0]])}, which --columns says is {told[0]}: its columns are {there}"
            f"{_of_one_table(told[0])}"
        )
    free = [one for one in present if one not in needed and one not in names.values()]
    likely = {name: found for name in missing if (found := _likely(name, free)) is not None}
    renamed = [f"rename {_shown(one)} to {name}" for name, one in likely.items()]
    cures = renamed + ["add it" if len(missing) == 1 else "add them"] * (len(renamed) < len(missing))
    said = ",".join(f"{name}={one}" for name, one in likely.items() if re.fullmatch(r"[\w.-]+", one))
    say = f", or say --columns {said}" if said else ""
    raise RawTableUnusable(
        f"{file} has no column {' and no column '.join(missing)}: {', '.join(cures)}{say}; its columns are {there}"
    )


def _likely(name: str, present: Sequence[str]) -> str | None:
    spelled = {re.sub(r"[^a-z0-9]+", "_", one.lower()).strip("_"): one for one in present}
    found = difflib.get_close_matches(name, spelled, n=1, cutoff=0.7)
    if found:
        return spelled[found[0]]
    plain = {one.replace("_", ""): theirs for one, theirs in spelled.items()}
    return next((plain[other] for other in OTHER_NAMES.get(name, ()) if other in plain), None)


def _of_one_table(column: str) -> str:
    both = [table for table, columns in COLUMNS.items() if column in {one.name for one in columns}]
    return "; of one table alone say " + " or ".join(f"{table}.{column}=" for table in both) if len(both) > 1 else ""


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]{1,40}", name) else repr(name[:40])
