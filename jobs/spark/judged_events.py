"""Judge events beside each other: the page view of each, and which contradict it, repeat another or are too many."""

from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_repo import contract
from jobs.logic import events as logic
from jobs.spark.raw_tables import REASON, ROW, first_reason, reject_also

PAGE_DAY: Final = "page_day"  # the request day, in days since 1970; null for an event without a page view
REPEAT: Final = "repeat"  # whether another row is the same event, and stands for it
DAY: Final = "day"
IN_TIME: Final = ("event_time", "item_id", "request_id")  # the order in which a user's clicks of a day count


def judge_together(read: DataFrame) -> DataFrame:
    """`read` with page_day and repeat, and with those rejected too that contradict their page view.

    read: raw_tables.read_events, judged one by one.  A rejected event has its own `row` for a request_id: one window
    over all requests, one shuffle, one sort; and the many that share a null request do not meet in one task.
    """
    usable = F.col(REASON).isNull()
    placed = read.withColumns(
        {"request_id": F.when(usable, F.col("request_id")).otherwise(F.col(ROW)), DAY: day_of("event_time")}
    )
    # Else the first window is placed by all its keys and the second by request_id again: two shuffles, two sorts.
    placed = placed.repartition("request_id")
    same = Window.partitionBy("request_id", DAY, "user_id", "item_id", "event_type", "event_time", REASON)
    topmost = F.row_number().over(same.orderBy(F.asc_nulls_last("position")))
    # Repeats are left out not for their sake: only so does Spark sort once, by the window that found them.
    counts = usable & is_a(logic.IMPRESSION) & ~F.col(REPEAT)
    opening = F.when(counts, F.struct("event_time", "user_id"))
    found = on_page(first_openings(placed.withColumn(REPEAT, topmost > 1), opening))
    return reject_also(found, F.when(usable, contradiction()), contract.EVENTS, keep=[PAGE_DAY, REPEAT])


def contradiction() -> Column:
    """Why an event on its page view, as `on_page` finds it, is rejected; null where it is not."""
    return first_reason(
        {
            logic.FOREIGN_REQUEST: F.col("user_id") != F.col("_opening.user_id"),
            logic.EARLY_CLICK: is_a(logic.CLICK) & (F.col("event_time") < F.col("_opening.event_time")),
        }
    )


def first_openings(placed: DataFrame, opening: Column) -> DataFrame:
    """`placed` with the smallest `opening` of the request two days before, the day before, on the day and after it."""
    days = Window.partitionBy("request_id").orderBy(DAY)
    return placed.withColumns(
        {
            name: F.min(opening).over(days.rangeBetween(days_later, days_later))
            for name, days_later in (("_two_before", -2), ("_before", -1), ("_same", 0), ("_after", 1))
        }
    )


def on_page(shown: DataFrame) -> DataFrame:
    """`shown` with page_day and `_opening`: when the event's page view began, and whose it is."""
    before, same, after = (F.col(name).isNotNull() for name in ("_before", "_same", "_after"))
    # Impressions of the day before belong themselves to the page view of the day before that, if there is one.
    of_the_day_before = F.when(F.col("_two_before").isNull(), F.col("_before")).otherwise(F.col("_same"))
    return shown.withColumns(
        {
            PAGE_DAY: F.when(before, F.col(DAY) - 1).when(same, F.col(DAY)).when(after, F.col(DAY) + 1),
            "_opening": F.when(before, of_the_day_before).when(same, F.col("_same")).otherwise(F.col("_after")),
        }
    )


def crowds(judged: DataFrame, max_clicks_per_day: int) -> DataFrame:
    """user_id, day, clicks, last: who clicks more than the cap on a day, how often, and the last click that stands.

    A few rows. Only the clicks of these users and days are sorted, and each task passes on no more than the cap of
    them (Spark's WindowGroupLimit): a bot with a third of all clicks is nobody's large task.
    """
    clicked = standing(judged).filter(is_a(logic.CLICK)).withColumn(DAY, day_of("event_time"))
    counts = clicked.groupBy("user_id", DAY).agg(F.count("*").alias("clicks"))
    over = counts.filter(F.col("clicks") > max_clicks_per_day)
    theirs = clicked.join(F.broadcast(over), on=["user_id", DAY], how="inner")
    number = F.row_number().over(Window.partitionBy("user_id", DAY).orderBy(*IN_TIME))
    last = theirs.withColumn("_number", number).filter(F.col("_number") == max_clicks_per_day)
    return last.select("user_id", DAY, "clicks", F.struct(*IN_TIME).alias("last"))


def cap(judged: DataFrame, crowded: DataFrame) -> DataFrame:
    """`judged` with each crowd's clicks rejected beyond the last one that stands. crowded: as `crowds` finds them."""
    limits = F.broadcast(crowded.select("user_id", DAY, "last"))
    both = judged.withColumn(DAY, day_of("event_time")).join(limits, on=["user_id", DAY], how="left")
    surplus = F.col(REASON).isNull() & is_a(logic.CLICK) & (F.struct(*IN_TIME) > F.col("last"))
    too_many = F.when(surplus, F.lit(logic.TOO_MANY_CLICKS))
    return reject_also(both, too_many, contract.EVENTS, keep=[PAGE_DAY, REPEAT])


def standing(judged: DataFrame) -> DataFrame:
    """The accepted events, each once: of the same event at several positions the topmost."""
    return judged.filter(F.col(REASON).isNull() & ~F.col(REPEAT)).drop(REASON, ROW, REPEAT)


def is_a(event_type: str) -> Column:
    """Whether a row is an event of this type."""
    return F.col("event_type") == event_type


def day_of(at: str) -> Column:
    """The UTC day of a moment, in days since 1970."""
    return F.unix_date(F.to_date(at))
