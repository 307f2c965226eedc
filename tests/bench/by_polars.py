"""The sequences tables as someone at home in polars would write them: a peer in the bench."""

from pathlib import Path

import polars as pl

from jobs.config import SequencesConfig

PAGE = ["request_id", "page_day"]
DAY = pl.duration(days=1)


def build(raw: Path, out: Path, config: SequencesConfig) -> None:
    """Write impressions, page_views, histories and clicks, each a parquet file of the same name, into `out`."""
    events = accepted(pl.scan_parquet(f"{raw}/events/*.parquet"))
    placed = deduplicated(in_place(with_page_day(events))).collect(engine="streaming").lazy()
    clicks = (
        capped(placed.filter(pl.col("event_type") == "click"), config.max_clicks_per_day)
        .collect(engine="streaming")
        .lazy()
    )
    shown = with_period(shown_items(placed, clicks), config).collect(engine="streaming").lazy()
    history = histories(clicks, max(config.ctr_history, config.pretrain_history)).collect(engine="streaming").lazy()
    tables = {
        "impressions": shown.select(
            "request_id", "user_id", "item_id", "request_time", "shown_at", "position", "clicked", "period"
        ),
        "clicks": clicks.select("user_id", "item_id", "event_time", "request_id"),
        "histories": history.select(
            "user_id",
            (pl.col("event_time") + pl.duration(microseconds=1)).alias("event_timestamp"),
            pl.col("items").list.head(config.ctr_history).alias("history_item_ids"),
            pl.col("times").list.head(config.ctr_history).alias("history_clicked_at"),
        ),
        "page_views": page_views(shown, history, config),
    }
    for name, table in tables.items():
        table.sink_parquet(out / f"{name}.parquet", compression="snappy")


def accepted(events: pl.LazyFrame) -> pl.LazyFrame:
    """The events that are acceptable by themselves."""
    keys = [pl.col(name).str.strip_chars() != "" for name in ("user_id", "item_id", "request_id")]
    is_known = pl.col("event_type").is_in(["impression", "click", "cart", "purchase"])
    is_placed = pl.col("position").is_not_null() | (pl.col("event_type") != "impression")
    return events.filter(
        *keys, is_known, pl.col("event_time").is_not_null(), is_placed, pl.col("position").fill_null(0) >= 0
    )


def with_page_day(events: pl.LazyFrame) -> pl.LazyFrame:
    """Each event with the day of its page view: the day before, its own or the next, where the request was shown."""
    day = pl.col("event_time").dt.date()
    shown_on = (
        events.filter(pl.col("event_type") == "impression").group_by("request_id").agg(day.unique().alias("days"))
    )
    candidates = [
        pl.when(pl.col("days").list.contains(day + offset)).then(day + offset) for offset in (-DAY, 0 * DAY, DAY)
    ]
    joined = events.join(shown_on, on="request_id", how="left")
    return joined.with_columns(pl.coalesce(candidates).alias("page_day")).drop("days")


def in_place(events: pl.LazyFrame) -> pl.LazyFrame:
    """The events that do not contradict the opening of their page view."""
    at, user = pl.col("event_time"), pl.col("user_id")
    opening = (
        events.filter(pl.col("event_type") == "impression")
        .group_by(PAGE)
        .agg(at.min().alias("opened_at"), user.filter(at == at.min()).min().alias("owner"))
    )
    own = (user == pl.col("owner")) & ((pl.col("event_type") != "click") | (at >= pl.col("opened_at")))
    joined = events.join(opening, on=PAGE, how="left")
    return joined.filter(pl.col("owner").is_null() | own).drop("opened_at", "owner")


def deduplicated(events: pl.LazyFrame) -> pl.LazyFrame:
    """Each event once, at its topmost position."""
    identity = ["user_id", "item_id", "event_time", "event_type", *PAGE]
    return events.group_by(identity).agg(pl.col("position").min())


def capped(clicks: pl.LazyFrame, most: int) -> pl.LazyFrame:
    """Of each user's clicks of a day the first `most`."""
    day = pl.col("event_time").dt.date()
    nth = pl.int_range(pl.len()).over("user_id", day, order_by=["event_time", "item_id", "request_id"])
    return clicks.filter(nth < most)


def shown_items(placed: pl.LazyFrame, clicks: pl.LazyFrame) -> pl.LazyFrame:
    """One row per item of a page view, with its label and the page view's request_time."""
    clicked = clicks.select(*PAGE, "item_id", pl.lit(1, pl.Int8).alias("clicked")).unique()
    seen = placed.filter(pl.col("event_type") == "impression")
    seen = seen.group_by(*PAGE, "user_id", "item_id").agg(
        pl.col("position").min(), pl.col("event_time").min().alias("shown_at")
    )
    opened = seen.group_by(PAGE).agg(pl.col("shown_at").min().alias("request_time"))
    labelled = seen.join(clicked, on=[*PAGE, "item_id"], how="left").with_columns(pl.col("clicked").fill_null(0))
    return labelled.join(opened, on=PAGE, how="inner")


def with_period(shown: pl.LazyFrame, config: SequencesConfig) -> pl.LazyFrame:
    """`shown` with the period that its request_time falls in."""
    times = shown.select(*PAGE, "request_time").unique().select(pl.col("request_time").sort())
    times = times.collect(engine="streaming")["request_time"]

    def nth(fraction: float) -> pl.Expr:
        return pl.lit(times[min(int(len(times) * fraction), len(times) - 1)])

    at, first = pl.col("request_time"), config.train_fraction
    later = pl.when(at < nth(first + config.valid_fraction)).then(pl.lit("valid")).otherwise(pl.lit("test"))
    return shown.with_columns(pl.when(at < nth(first)).then(pl.lit("train")).otherwise(later).alias("period"))


def histories(clicks: pl.LazyFrame, length: int) -> pl.LazyFrame:
    """user_id, event_time, items and times: each user's last clicks up to each moment of one, newest first."""
    once = clicks.select("user_id", "event_time", "item_id").unique()
    in_time = once.sort("user_id", "event_time", "item_id", descending=[False, False, True])
    rows = in_time.with_row_index("n").with_columns(pl.col("n").cast(pl.Int64))
    found = rows.rolling("n", period=f"{length}i", group_by="user_id").agg(
        pl.col("event_time").last(),
        pl.col("item_id").reverse().alias("items"),
        pl.col("event_time").dt.epoch("us").reverse().alias("times"),
    )
    last = [pl.col(name).ne_missing(pl.col(name).shift(-1)) for name in ("user_id", "event_time")]
    return found.filter(pl.any_horizontal(last)).drop("n")


def page_views(shown: pl.LazyFrame, history: pl.LazyFrame, config: SequencesConfig) -> pl.LazyFrame:
    """One row per page view: its items from the top down with labels, and the newest clicks before it."""
    page = ["request_id", "user_id", "request_time", "period"]
    first = shown.sort("clicked", "position", "item_id", descending=[True, False, False])
    kept = first.group_by(page, maintain_order=True).head(config.page_view_size).sort("position", "item_id")
    pages = kept.group_by(page, maintain_order=True).agg(
        pl.col("item_id").alias("item_ids"), pl.col("clicked").alias("labels")
    )
    newest = pl.col("items").list.head(config.pretrain_history).alias("history_item_ids")
    joined = pages.sort("request_time").join_asof(
        history.select("user_id", "event_time", newest).sort("event_time"),
        left_on="request_time",
        right_on="event_time",
        by="user_id",
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,  # both are sorted just above
    )
    return joined.select(*page, "item_ids", "labels", pl.col("history_item_ids").fill_null([]))
