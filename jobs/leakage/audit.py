"""Hold a workspace's artifacts, whole tables, against what was known at each moment: recounted in SQL.

Nothing here calls the code that made the artifacts, and all is compared exactly. Histories are gathered anew from the
clicks, statistics counted anew from impressions and clicks, profiles joined anew as of the request.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_repo.contract import (
    EVENT_TIME,
    ITEM_CLUSTER,
    ITEM_EMBEDDING,
    ITEM_KEY,
    ITEM_PROFILE,
    ITEM_STATISTICS,
    PERIODS,
    SMOOTHING_CLICKS,
    SMOOTHING_IMPRESSIONS,
    SPACE_KEY,
    USER_HISTORY,
    USER_STATISTICS,
    VIEWS,
    WINDOWS_DAYS,
    View,
)
from jobs.config import SequencesConfig
from jobs.features.offline import connect, read_parquet
from jobs.leakage.check_result import Finding
from jobs.rules.events import CONVERSIONS, EARLY_CLICK, FOREIGN_REQUEST, TOO_MANY_CLICKS
from model import artifact
from model.ctr.inputs.rows import DEFAULTS, KIND_DEFAULTS

if TYPE_CHECKING:
    import duckdb

AUDITED: Final = ("sequences", "images", "pretrain", "embed", "cluster", "features", "rows")
# The tables of sequences that no other stage reads.
ASIDE: Final = {
    "conversions": "user_id TEXT, item_id TEXT, event_time TIMESTAMPTZ, event_type TEXT, request_id TEXT",
    "rejected": '"table" TEXT, "row" TEXT, reason TEXT',
}
CONTRADICTIONS: Final = (FOREIGN_REQUEST, EARLY_CLICK, TOO_MANY_CLICKS)
STATISTICS: Final = {"item": ITEM_STATISTICS, "user": USER_STATISTICS}
REQUEST: Final = "'request ' || request_id || ' of ' || user_id || ' at ' || request_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """What must be true of every row of `rows`; `broken` selects, as `example`, a sentence on each row that breaks it.

    rows, broken: SQL, a table and a query.  note: SQL for one text, or nothing.
    """

    check: str
    law: str
    rows: str
    broken: str
    note: str | None = None
    must_see: bool = False


def found(connection: "duckdb.DuckDBPyConnection", law: Law) -> Finding:
    """Hold one law against its rows."""
    # All is fetched: a result that is not read to its end keeps the connection from other work.
    [(rows,)] = connection.execute(f"SELECT count(*) FROM {law.rows}").fetchall()
    [(broken, example)] = connection.execute(f"SELECT count(*), min(example)[:240] FROM ({law.broken})").fetchall()
    notes = connection.execute(law.note).fetchall() if law.note else [(None,)]
    return Finding(
        check=law.check,
        law=law.law,
        rows=rows,
        broken=broken,
        example=example,
        note=notes[0][0],
        must_see=law.must_see,
    )


def audit(stages: Mapping[str, Path]) -> Iterator[Finding]:
    """Every law of the artifacts, one finding each. stages: the folder of each stage in AUDITED.

    Raises ArtifactMissing or ArtifactMismatch where a folder does not hold its stage.
    """
    manifests = {name: artifact.read(stages[name], kind=name) for name in AUDITED}
    config = SequencesConfig(**manifests["sequences"].config)
    splits = {name: str(at) for name, at in manifests["sequences"].facts["splits"].items()}
    with closing(connect()) as connection:
        open_tables(connection, stages)
        gather_histories(connection, max(config.ctr_history, config.pretrain_history))
        laws = (
            *_period_laws(splits),
            *_label_laws(),
            *_conversion_laws(),
            *_rejected_laws(manifests["sequences"].facts.get("events_rejected", {})),
            *_history_laws(config),
            *_statistics_laws(),
            *_item_laws(str(manifests["features"].facts["space_id"]), str(manifests["features"].facts["as_of"])),
            _codebook_law(int(manifests["cluster"].facts["fitted_on"]), splits),
            _encoder_law(str(manifests["pretrain"].facts["trained_until"]), splits),
        )
        for law in laws:
            yield found(connection, law)


def open_tables(connection: "duckdb.DuckDBPyConnection", stages: Mapping[str, Path]) -> None:
    """A view of each table: of sequences, of features (under the contract's names), `items`, `embedded`, and `rows`."""
    sources = {name: stages["sequences"] / name for name in ("impressions", "clicks", "page_views")}
    for name, columns in ASIDE.items():
        if any((stages["sequences"] / name).glob("*.parquet")):
            sources[name] = stages["sequences"] / name
        else:  # of a table without rows there is no file
            connection.execute(f"CREATE TABLE {name} ({columns})")
    sources |= {view.name: stages["features"] / view.name for view in VIEWS}
    sources |= {"items": stages["images"] / "items.parquet", "embedded": stages["embed"] / "items.parquet"}
    sources = {name: path for name, path in sources.items() if path.exists()}
    for name, path in sources.items():
        connection.execute(f"CREATE VIEW {name} AS FROM {read_parquet(path)}")
    connection.execute(f"CREATE VIEW rows AS {read_rows(stages['rows'])}")


def read_rows(folder: Path) -> str:
    """SQL: the rows of a rows artifact, each with the `period` whose file it stands in."""
    parts = (f"SELECT *, '{name}' AS period FROM {read_parquet(folder / f'{name}.parquet')}" for name in PERIODS)
    return " UNION ALL ".join(parts)


# --- periods and labels ---------------------------------------------------------------------------------------------


def _period_laws(splits: Mapping[str, str]) -> Iterator[Law]:
    valid, test = (f"TIMESTAMPTZ '{splits[name]}'" for name in ("valid_start", "test_start"))
    expected = f"CASE WHEN request_time < {valid} THEN 'train' WHEN request_time < {test} THEN 'valid' ELSE 'test' END"
    for table in ("impressions", "page_views", "rows"):
        yield Law(
            check=f"{table}.period",
            law="a row lies in the period of its request_time; periods are half open and follow each other",
            rows=table,
            broken=f"""
                SELECT {REQUEST} || ' stands in ' || period AS example FROM {table} WHERE period <> {expected}
                UNION ALL SELECT 'valid_start {splits["valid_start"]}, test_start {splits["test_start"]}'
                WHERE {valid} > {test}
            """,
        )


def _label_laws() -> Iterator[Law]:
    labelled = {
        "impressions": "SELECT request_id, user_id, item_id, request_time, clicked FROM impressions",
        "page_views": "SELECT request_id, user_id, unnest(item_ids) AS item_id, request_time, "
        "unnest(labels) AS clicked FROM page_views",
        "rows": "SELECT request_id, user_id, item_id, request_time, clicked FROM rows",
    }
    # A page view takes clicks of its own day and the next; it may open on either, so two days bound it from outside.
    own = """
        clicks.request_id = labelled.request_id AND clicks.user_id = labelled.user_id
        AND clicks.item_id = labelled.item_id AND clicks.event_time >= request_time
        AND clicks.event_time < date_trunc('day', request_time) + INTERVAL 2 DAY
    """
    for table, query in labelled.items():
        yield Law(
            check=f"{table}.label",
            law="a label of 1 has a click of that user on that item in that page view, at or after its request",
            rows=f"({query}) WHERE clicked = 1",
            broken=f"""
                SELECT {REQUEST} || ': ' || item_id || ' was never clicked there' AS example
                FROM ({query}) AS labelled WHERE clicked = 1 AND NOT EXISTS (FROM clicks WHERE {own})
            """,
            note=f"""
                SELECT 'latest label ' || max(clicks.event_time - request_time) || ' after its request'
                FROM ({query}) AS labelled JOIN clicks ON {own} WHERE clicked = 1
            """,
        )


# --- what is set aside ----------------------------------------------------------------------------------------------


def _conversion_laws() -> Iterator[Law]:
    what = "event_type || ' of ' || item_id || ' by ' || user_id || ' at ' || event_time"
    yield Law(
        check="conversions.kind",
        law="a conversion is a cart or a purchase, and stands once",
        rows="conversions",
        broken=f"""
            SELECT {what} AS example FROM conversions GROUP BY user_id, item_id, event_time, event_type, request_id
            HAVING count(*) > 1 OR event_type NOT IN ({_texts(CONVERSIONS)})
        """,
    )
    yield Law(
        check="conversions.user",
        law="a conversion is of a user who saw its request, where that was opened on its day or one beside it",
        rows="conversions",
        broken=f"""
            SELECT {what} AS example
            FROM conversions JOIN page_views AS shown ON shown.request_id = conversions.request_id
                AND request_time::DATE BETWEEN event_time::DATE - 1 AND event_time::DATE + 1
            GROUP BY conversions.user_id, item_id, event_time, event_type, conversions.request_id
            HAVING NOT bool_or(shown.user_id = conversions.user_id)
        """.replace("by ' || user_id", "by ' || conversions.user_id"),
    )


def _rejected_laws(counted: Mapping[str, int]) -> Iterator[Law]:
    told = ", ".join(f"('{reason}', {count})" for reason, count in counted.items()) or "(NULL, 0)"
    yield Law(
        check="rejected.counted",
        law="every rejected row is kept with its reason, as many as the manifest says",
        rows="rejected",
        broken=f"""
            SELECT reason || ': ' || coalesce(kept, 0) || ' kept, ' || coalesce(told, 0) || ' counted' AS example
            FROM (SELECT reason, count(*) AS kept FROM rejected GROUP BY reason)
            FULL JOIN (FROM (VALUES {told}) AS counted(reason, told) WHERE reason IS NOT NULL) USING (reason)
            WHERE kept IS DISTINCT FROM told
        """,
    )
    rows = f"(SELECT {_as_event()}, reason FROM rejected WHERE reason IN ({_texts(CONTRADICTIONS)}))"
    yield Law(
        check="rejected.stands_nowhere",
        law="an event that contradicts its page view, or is one too many, stands in no other table",
        rows=rows,
        broken=f"""
            SELECT reason || ': ' || event_type || ' of ' || item_id || ' by ' || user_id AS example
            FROM {rows} SEMI JOIN (
                SELECT user_id, item_id, request_id, 'impression' AS event_type, shown_at AS event_time FROM impressions
                UNION ALL SELECT user_id, item_id, request_id, 'click', event_time FROM clicks
                UNION ALL SELECT user_id, item_id, request_id, event_type, event_time FROM conversions
            ) USING (user_id, item_id, request_id, event_type, event_time)
        """,
    )


def _as_event() -> str:
    """SQL: the columns of a rejected row that say which event it was."""
    names = ("user_id", "item_id", "request_id", "event_type", "event_time")
    told = {name: f"json_extract_string(\"row\", '$.{name}')" for name in names}
    told["event_time"] += "::TIMESTAMPTZ"
    return ", ".join(f"{sql} AS {name}" for name, sql in told.items())


def _texts(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


# --- histories ------------------------------------------------------------------------------------------------------


def gather_histories(connection: "duckdb.DuckDBPyConnection", length: int) -> None:
    """The table `known`: what a user's last `length` clicks were after each moment `at` at which that user clicked.

    item_ids and clicked_at (microseconds since 1970): newest first, equal times by item_id; a click that two requests
    tell of stands once.
    """
    connection.execute(
        f"""
        CREATE TABLE known AS
        SELECT user_id, event_time AS at, list_reverse(list(item_id) OVER newest) AS item_ids,
            list_reverse(list(epoch_us(event_time)) OVER newest) AS clicked_at
        FROM (SELECT DISTINCT user_id, item_id, event_time FROM clicks)
        WINDOW newest AS (
            PARTITION BY user_id ORDER BY event_time, item_id DESC ROWS BETWEEN {length - 1} PRECEDING AND CURRENT ROW
        ), in_time AS (PARTITION BY user_id ORDER BY event_time, item_id DESC)
        QUALIFY lead(event_time) OVER in_time IS DISTINCT FROM event_time
        """
    )


def _history_laws(config: SequencesConfig) -> Iterator[Law]:
    kept = {"page_views": config.pretrain_history, "rows": config.ctr_history, USER_HISTORY.name: config.ctr_history}
    for table, length in kept.items():
        moment = EVENT_TIME if table == USER_HISTORY.name else "request_time"
        who = f"told.user_id || ' at ' || told.{moment}"
        timed = table != "page_views"
        if timed:
            yield Law(
                check=f"{table}.history_is_past",
                law=f"every click of a history lies strictly before {moment}",
                rows=table,
                broken=f"""
                    SELECT {who} || ': holds a click of ' || make_timestamptz(list_max(history_clicked_at)) AS example
                    FROM {table} AS told WHERE list_max(history_clicked_at) >= epoch_us({moment})
                """,
            )
        expected = f"coalesce(known.item_ids[:{length}], [])"
        times = f"OR history_clicked_at IS DISTINCT FROM coalesce(known.clicked_at[:{length}], [])" if timed else ""
        yield Law(
            check=f"{table}.history",
            law=f"a history is the user's last {length} clicks strictly before {moment}, gathered anew from the clicks",
            rows=table,
            broken=f"""
                SELECT {who} || ': ' || history_item_ids[:3]::TEXT || ' ..., not ' || ({expected})[:3]::TEXT AS example
                FROM (SELECT user_id, {moment}, history_item_ids{", history_clicked_at" if timed else ""} FROM {table})
                    AS told ASOF LEFT JOIN known ON known.user_id = told.user_id AND known.at < told.{moment}
                WHERE history_item_ids IS DISTINCT FROM {expected} {times}
            """,
        )


# --- statistics -----------------------------------------------------------------------------------------------------


def _statistics_laws() -> Iterator[Law]:
    for prefix, view in STATISTICS.items():
        yield _statistics_law("rows", "request_time", prefix, view)
        yield _statistics_law(view.name, EVENT_TIME, prefix, view)


def _statistics_law(table: str, moment: str, prefix: str, view: View) -> Law:
    [key] = view.keys
    names = [feature.name for feature in view.features]
    differs = " OR ".join(f"told.{name} IS DISTINCT FROM counted.{name}" for name in names)
    found = " || ', ' || ".join(f"told.{name} || ' not ' || counted.{name}" for name in names[:2])
    return Law(
        check=f"{table}.{prefix}_statistics",
        law=f"{prefix} statistics count [midnight - window, midnight) before {moment}, and nothing of that day",
        rows=table,
        broken=f"""
            WITH told AS (SELECT {key}, {moment} AS moment, {", ".join(names)} FROM {table}),
            counted AS ({_recount(key, prefix)})
            SELECT told.{key} || ' at ' || moment || ': {names[0]}, {names[1]} ' || {found} AS example
            FROM told JOIN counted ON counted.{key} = told.{key} AND counted.day = told.moment::DATE
            WHERE {differs}
        """,
    )


def _recount(key: str, prefix: str) -> str:
    """SQL: key, day and the statistics as of that day's midnight, for each key and day of the table `told`."""
    columns = []
    for days in WINDOWS_DAYS:
        count = {
            what: f"coalesce(sum({what}) FILTER (daily.day >= asked.day - {days}), 0)::BIGINT"
            for what in ("impressions", "clicks")
        }
        columns += [f"{sql} AS {prefix}_{what}_{days}d" for what, sql in count.items()]
        clicks, impressions = (
            f"{count['clicks']} + {SMOOTHING_CLICKS}",
            f"{count['impressions']} + {SMOOTHING_IMPRESSIONS}",
        )
        columns.append(f"({clicks}::DOUBLE) / ({impressions}::DOUBLE) AS {prefix}_ctr_{days}d")
    return f"""
        SELECT asked.{key}, asked.day, {", ".join(columns)}
        FROM (SELECT DISTINCT {key}, moment::DATE AS day FROM told) AS asked
        LEFT JOIN (
            SELECT {key}, day, count(*) FILTER (what = 1) AS impressions, count(*) FILTER (what = 2) AS clicks
            FROM (SELECT {key}, shown_at::DATE AS day, 1 AS what FROM impressions
                UNION ALL SELECT {key}, event_time::DATE, 2 FROM clicks)
            GROUP BY ALL
        ) AS daily
        ON daily.{key} = asked.{key} AND daily.day < asked.day AND daily.day >= asked.day - {max(WINDOWS_DAYS)}
        GROUP BY asked.{key}, asked.day
    """


# --- items, codebook, encoder ---------------------------------------------------------------------------------------


def _item_laws(space_id: str, as_of: str) -> Iterator[Law]:
    for view in (ITEM_PROFILE, ITEM_CLUSTER, ITEM_EMBEDDING):
        yield Law(
            check=f"{view.name}.known_since",
            law="an item is not known before it was created, or before its first event where that comes earlier",
            rows=view.name,
            broken=f"""
                WITH met AS (
                    SELECT item_id, min(moment) AS first_event FROM (
                        SELECT item_id, request_time AS moment FROM impressions
                        UNION ALL SELECT item_id, event_time FROM clicks
                    ) GROUP BY item_id
                )
                SELECT told.item_id || ': known since ' || {EVENT_TIME} || ', created ' || items.created_at AS example
                FROM {view.name} AS told JOIN items USING (item_id) LEFT JOIN met USING (item_id)
                WHERE items.created_at IS NOT NULL
                    AND {EVENT_TIME} < least(items.created_at, first_event, TIMESTAMPTZ '{as_of}')
            """,
        )
    yield _as_of_law(ITEM_PROFILE, "TRUE")
    yield _as_of_law(ITEM_CLUSTER, f"{SPACE_KEY} = '{space_id}'")


def _as_of_law(view: View, which: str) -> Law:
    # Prices are doubles, and DuckDB holds NaN equal to itself.
    filled = {
        f.name: f"coalesce(valid.{f.name}, {_literal(DEFAULTS.get(f.name, KIND_DEFAULTS[f.kind]))})"
        for f in view.features
    }
    differs = " OR ".join(f"told.{name} IS DISTINCT FROM {expected}" for name, expected in filled.items())
    return Law(
        check=f"rows.{view.name}",
        law=f"{view.name} in a row is what was valid at its request, joined anew",
        rows="rows",
        broken=f"""
            SELECT {REQUEST} || ': ' || told.item_id AS example
            FROM rows AS told
            ASOF LEFT JOIN (FROM {view.name} WHERE {which}) AS valid
            ON valid.{ITEM_KEY} = told.{ITEM_KEY} AND valid.{EVENT_TIME} <= told.request_time
            WHERE {differs}
        """,
    )


def _literal(default: object) -> str:
    return f"'{default}'" if isinstance(default, str) else f"{default!r}".replace("nan", "'NaN'::DOUBLE")


def _codebook_law(fitted_on: int, splits: Mapping[str, str]) -> Law:
    shown = f"SELECT item_id FROM impressions WHERE request_time < TIMESTAMPTZ '{splits['valid_start']}'"
    vectors = f'(SELECT DISTINCT "row" FROM embedded SEMI JOIN ({shown}) USING (item_id))'
    return Law(
        check="cluster.fitted_on",
        law="the codebook is fitted on the pictures shown before the validation period",
        rows=vectors,
        broken=f"""
            SELECT 'fitted on {fitted_on} pictures, {splits["valid_start"]} had seen ' || count(*) AS example
            FROM {vectors} HAVING count(*) <> {fitted_on}
        """,
    )


def _encoder_law(trained_until: str, splits: Mapping[str, str]) -> Law:
    until, valid = (f"TIMESTAMPTZ '{at}'" for at in (trained_until, splits["valid_start"]))
    return Law(
        check="pretrain.trained_until",
        law="the encoder is trained on nothing of the validation period or later",
        rows=f"page_views WHERE request_time < {until}",
        broken=f"SELECT 'trained until {trained_until}' AS example WHERE {until} > {valid}",
    )
