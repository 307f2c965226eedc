"""Judge events beside each other: the page view of each, and which contradict it, repeat another or are too many."""

from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_repo import contract
from jobs.engines.parquet_parts import by_hash
from jobs.raw.spark_tables import first_reason, reject_also
from jobs.raw.typed import REASON, ROW
from jobs.rules import events as logic

PAGE_DAY: Final = "page_day"  # the request day, in days since 1970; null for an event without a page view
REPEAT: Final = "repeat"  # whether another row is the same event, and stands for it
DAY: Final = "day"
IN_TIME: Final = ("event_time", "item_id", "request_id")  # the order in which a user's clicks of a day count


def validate_together(read: DataFrame, opened: DataFrame | None = None) -> DataFrame:
    """`read` with page_day and repeat, and with those rejected too that contradict their page view.

    read: raw_tables.read_events, validated one by one.  opened: the openings of their impressions, where known already.
    A rejected event has its own `row` for a request_id: so the many that share a null request do not meet in one task.
    """
    usable = F.col(REASON).isNull()
    known = openings(read.filter(usable & is_a(logic.IMPRESSION))) if opened is None else opened
    own = F.when(usable, F.col("request_id")).otherwise(F.col(ROW))
    found = on_pages(read.withColumn("request_id", own), known, how="left")
    same = Window.partitionBy("request_id", DAY, "user_id", "item_id", "event_type", "event_time", REASON)
    topmost = F.row_number().over(same.orderBy(F.asc_nulls_last("position")))
    validated = found.withColumn(REPEAT, topmost > 1)
    return reject_also(validated, F.when(usable, contradiction()), contract.EVENTS, keep=[PAGE_DAY, REPEAT])


def contradiction() -> Column:
    """Why an event, as `on_pages` finds it, is rejected beside its page view; null where it is not."""
    return first_reason(
        {
            logic.FOREIGN_REQUEST: F.col("user_id") != F.col("opened_by"),
            logic.EARLY_CLICK: is_a(logic.CLICK) & (F.col("event_time") < F.col("opened_at")),
        }
    )


def consistent(shown: DataFrame, opened: DataFrame) -> DataFrame:
    """Acceptable impressions, and events like them, with their page_day; without those that validate_apart rejects."""
    return on_pages(shown, opened, how="inner").filter(F.col("user_id") == F.col("opened_by"))


def openings(shown: DataFrame) -> DataFrame:
    """The page views of acceptable impressions: page_day, since, until, opened_at, opened_by, shared of a request_id.

    A row for each day on which a request was shown: its impressions make a page view of that day, or belong to that of
    the day before.  since, until: the days, both included, whose events belong to the page view of page_day; no event
    belongs to two.  opened_at, opened_by: when that page view began and whose it is; null where the request's
    impressions of the day belong to the day before, and none come the day after.  shared: whether it was shown to
    others besides, on that day or the next.
    """
    first = shown.groupBy("request_id", day_of("event_time").alias(DAY), "user_id").agg(F.min("event_time").alias("at"))
    days = by_hash(first, "request_id").groupBy("request_id", DAY)
    of_day = days.agg(F.min(F.struct("at", "user_id")).alias("first"), F.count("*").alias("users"))
    day, in_time = F.col(DAY), Window.partitionBy("request_id").orderBy(DAY)
    before, users_then = F.lag(DAY).over(in_time), F.lead("users").over(in_time)
    then = F.when(F.lead(DAY).over(in_time) == day + 1, F.lead("first").over(in_time))
    begun = of_day.select(
        "*", before.alias("_before"), then.alias("_then"), F.when(then.isNotNull(), users_then).alias("_users_then")
    )
    goes_on, late = F.col("_before") == day - 1, F.col("_before") == day - 2
    opening = F.when(goes_on, F.col("_then")).otherwise(F.col("first"))
    others = (F.col("users") > 1) | (F.col("_users_then") > 1) | (F.col("_then.user_id") != F.col("first.user_id"))
    return begun.select(
        "request_id",
        day.alias(PAGE_DAY),
        F.when(goes_on, day + 1).when(late, day).otherwise(day - 1).alias("since"),
        (day + 1).alias("until"),
        opening["at"].alias("opened_at"),
        opening["user_id"].alias("opened_by"),
        F.coalesce(others, F.lit(False)).alias("shared"),
    )


def on_pages(events: DataFrame, opened: DataFrame, how: str, *, few: bool = False) -> DataFrame:
    """Events with their day, and with page_day, opened_at and opened_by of the page view they belong to.

    how: `left` keeps, `inner` leaves out the events without one.  opened: as of `openings`.
    few: whether they are so few that they go to the events, wherever these lie.
    """
    pages = opened.select(F.col("request_id").alias("_request"), PAGE_DAY, "since", "until", "opened_at", "opened_by")
    dated = events.withColumn(DAY, day_of("event_time"))
    belongs = (F.col("request_id") == F.col("_request")) & F.col(DAY).between(F.col("since"), F.col("until"))
    placed = dated if few else by_hash(dated, "request_id")
    joined = placed.join(F.broadcast(pages) if few else pages.hint("shuffle_hash"), on=belongs, how=how)
    return joined.drop("_request", "since", "until")


def over_cap_users(validated: DataFrame, max_clicks_per_day: int) -> DataFrame:
    """user_id, day, clicks, last: who clicks more than the cap on a day, how often, and the last click that stands.

    A few rows. Only the clicks of these users and days are sorted, and each task passes on no more than the cap of
    them (Spark's WindowGroupLimit): a bot with a third of all clicks is nobody's large task.
    """
    clicked = accepted(validated).filter(is_a(logic.CLICK)).withColumn(DAY, day_of("event_time"))
    counts = clicked.groupBy("user_id", DAY).agg(F.count("*").alias("clicks"))
    over = counts.filter(F.col("clicks") > max_clicks_per_day)
    theirs = clicked.join(F.broadcast(over), on=["user_id", DAY], how="inner")
    number = F.row_number().over(Window.partitionBy("user_id", DAY).orderBy(*IN_TIME))
    last = theirs.withColumn("_number", number).filter(F.col("_number") == max_clicks_per_day)
    return last.select("user_id", DAY, "clicks", F.struct(*IN_TIME).alias("last"))


def cap(validated: DataFrame, over_cap: DataFrame) -> DataFrame:
    """`validated` with the clicks rejected beyond each last one that is accepted. over_cap: of `over_cap_users`."""
    limits = F.broadcast(over_cap.select("user_id", DAY, "last"))
    both = validated.withColumn(DAY, day_of("event_time")).join(limits, on=["user_id", DAY], how="left")
    surplus = F.col(REASON).isNull() & is_a(logic.CLICK) & (F.struct(*IN_TIME) > F.col("last"))
    too_many = F.when(surplus, F.lit(logic.TOO_MANY_CLICKS))
    return reject_also(both, too_many, contract.EVENTS, keep=[PAGE_DAY, REPEAT])


def accepted(validated: DataFrame) -> DataFrame:
    """The accepted events, each once: of the same event at several positions the topmost."""
    return validated.filter(F.col(REASON).isNull() & ~F.col(REPEAT)).drop(REASON, ROW, REPEAT)


def is_a(event_type: str) -> Column:
    """Whether a row is an event of this type."""
    return F.col("event_type") == event_type


def day_of(at: str) -> Column:
    """The UTC day of a moment, in days since 1970."""
    return F.unix_date(F.to_date(at))
