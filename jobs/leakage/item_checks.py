"""Checks of items and of what is fitted to them: when an item is known, and what codebook and encoder have seen."""

from collections.abc import Iterator, Mapping

from feature_repo.contract import CODEBOOK_KEY, EVENT_TIME, ITEM_CLUSTER, ITEM_EMBEDDING, ITEM_KEY, ITEM_PROFILE, View
from jobs.leakage.check import REQUEST, Check
from model.ctr.inputs.rows import DEFAULTS, KIND_DEFAULTS


def item_checks(codebook_id: str, as_of: str) -> Iterator[Check]:
    """When items are known, and what the rows say of them. as_of: of the features."""
    for view in (ITEM_PROFILE, ITEM_CLUSTER, ITEM_EMBEDDING):
        yield Check(
            name=f"{view.name}.known_since",
            claim="an item is not known before it was created, or before its first event where that comes earlier",
            rows=view.name,
            violations=f"""
                WITH met AS (
                    SELECT item_id, min(moment) AS first_event FROM (
                        SELECT item_id, request_time AS moment FROM impressions
                        UNION ALL SELECT item_id, event_time FROM clicks
                    ) GROUP BY item_id
                )
                SELECT stored.item_id || ': known since ' || {EVENT_TIME} || ', created ' || items.created_at AS example
                FROM {view.name} AS stored JOIN items USING (item_id) LEFT JOIN met USING (item_id)
                WHERE items.created_at IS NOT NULL
                    AND {EVENT_TIME} < least(items.created_at, first_event, TIMESTAMPTZ '{as_of}')
            """,
        )
    yield _as_of_check(ITEM_PROFILE, "TRUE")
    yield _seen_check()
    yield _as_of_check(ITEM_CLUSTER, f"{CODEBOOK_KEY} = '{codebook_id}'")


def _seen_check() -> Check:
    # The last of an item's states that was seen of its date, and none that a later ingest dates earlier.
    seen = """
        SELECT *, coalesce(updated_at, first_seen) AS known_from FROM item_states AS one
        WHERE NOT EXISTS (
            FROM item_states AS other WHERE other.item_id = one.item_id AND other.first_seen > one.first_seen AND (
                other.updated_at = one.updated_at OR (one.updated_at IS NULL AND other.updated_at <= one.first_seen)
            )
        )
        QUALIFY row_number() OVER (PARTITION BY item_id, known_from ORDER BY first_seen DESC) = 1
    """
    joined = f"""
        rows AS stored ASOF JOIN ({seen}) AS seen
        ON stored.{ITEM_KEY} = seen.{ITEM_KEY} AND stored.request_time >= seen.known_from
    """
    said = {
        "category": "coalesce(seen.category, '')",
        "price": "coalesce(seen.price, 'NaN')",
        "created_at": "coalesce(epoch_us(seen.created_at), -1)",
    }
    differs = " OR ".join(f"stored.{name} IS DISTINCT FROM {value}" for name, value in said.items())
    return Check(
        name="rows.item_profile_seen",
        claim="item_profile in a row is what an ingest had seen last, or the table had dated, where there was any",
        rows="rows",
        violations=f"SELECT {REQUEST} || ': ' || stored.item_id AS example FROM {joined} WHERE {differs}",
        note=f"""
            SELECT total - seen || ' of ' || total ||
                ' rows lie before their item''s profile was first seen: not proven'
            FROM (SELECT (SELECT count(*) FROM rows) AS total, (SELECT count(*) FROM {joined}) AS seen)
            WHERE seen < total
        """,
    )


def _as_of_check(view: View, which: str) -> Check:
    # Prices are doubles, and DuckDB holds NaN equal to itself.
    filled = {
        f.name: f"coalesce(valid.{f.name}, {_literal(DEFAULTS.get(f.name, KIND_DEFAULTS[f.kind]))})"
        for f in view.features
    }
    differs = " OR ".join(f"stored.{name} IS DISTINCT FROM {expected}" for name, expected in filled.items())
    return Check(
        name=f"rows.{view.name}",
        claim=f"{view.name} in a row is what was valid at its request, joined anew",
        rows="rows",
        violations=f"""
            SELECT {REQUEST} || ': ' || stored.item_id AS example
            FROM rows AS stored
            ASOF LEFT JOIN (FROM {view.name} WHERE {which}) AS valid
            ON valid.{ITEM_KEY} = stored.{ITEM_KEY} AND valid.{EVENT_TIME} <= stored.request_time
            WHERE {differs}
        """,
    )


def _literal(default: object) -> str:
    return f"'{default}'" if isinstance(default, str) else f"{default!r}".replace("nan", "'NaN'::DOUBLE")


def codebook_check(fitted_on: int, trained_until: str) -> Check:
    """fitted_on: the distinct vectors that the codebook was fitted to, of items shown before `trained_until`."""
    shown = f"SELECT item_id FROM impressions WHERE request_time < TIMESTAMPTZ '{trained_until}'"
    vectors = f'(SELECT DISTINCT "row" FROM embedded SEMI JOIN ({shown}) USING (item_id))'
    return Check(
        name="codebook.fitted_on",
        claim="the codebook is fitted on the pictures shown before the end of what it has seen",
        rows=vectors,
        violations=f"""
            SELECT 'fitted on {fitted_on} pictures, {trained_until} had seen ' || count(*) AS example
            FROM {vectors} HAVING count(*) <> {fitted_on}
        """,
    )


def trained_until_check(stage: str, trained_until: str, splits: Mapping[str, str]) -> Check:
    """trained_until: the end, half open, of the page views that the stage has seen, ISO 8601."""
    until, valid = (f"TIMESTAMPTZ '{at}'" for at in (trained_until, splits["valid_start"]))
    return Check(
        name=f"{stage}.trained_until",
        claim=f"{stage} is of nothing in the validation period or later",
        rows=f"page_views WHERE request_time < {until}",
        violations=f"SELECT 'trained until {trained_until}' AS example WHERE {until} > {valid}",
    )
