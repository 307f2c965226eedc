"""The sequences tables as someone at home in DuckDB would write them: a peer in the bench, bare."""

from pathlib import Path

import duckdb

from jobs.config import SequencesConfig

ACCEPTED = """
create temp table event as
select user_id, item_id, event_time, event_type, request_id, position
from read_parquet($raw)
where trim(user_id) <> '' and trim(item_id) <> '' and trim(request_id) <> ''
  and event_type in ('impression', 'click', 'cart', 'purchase')
  and event_time is not null and (position >= 0 or (position is null and event_type <> 'impression'))
"""
# A request's impressions begin a page view on the day before, on their own day, or on the next: in this order.
PLACED = """
create temp table placed as
with shown_on as (
  select request_id, list(distinct event_time::date) as days from event where event_type = 'impression' group by all
), paged as (
  select event.*, case
      when list_contains(days, event_time::date - 1) then event_time::date - 1
      when list_contains(days, event_time::date) then event_time::date
      when list_contains(days, event_time::date + 1) then event_time::date + 1 end as page_day
  from event left join shown_on using (request_id)
), opened as (
  select request_id, page_day, min((event_time, user_id)) as opening
  from paged where event_type = 'impression' group by all
)
select user_id, item_id, event_time, event_type, request_id, page_day, min(position) as position
from paged left join opened using (request_id, page_day)
where opening is null
   or (user_id = opening[2] and not (event_type = 'click' and event_time < opening[1]))
group by all
"""
CLICKS = """
create temp table click as
select * from placed where event_type = 'click'
qualify row_number() over (
  partition by user_id, event_time::date order by event_time, item_id, request_id) <= $clicks_a_day
"""
PAGES = """
create temp table shown as
with clicked as (select distinct request_id, page_day, item_id, 1::tinyint as clicked from click),
seen as (
  select request_id, page_day, user_id, item_id, min(position) as position, min(event_time) as shown_at
  from placed where event_type = 'impression' group by all
)
select request_id, page_day, user_id, item_id, shown_at, position, coalesce(clicked, 0) as clicked,
  min(shown_at) over (partition by request_id, page_day) as request_time
from seen left join clicked using (request_id, page_day, item_id)
"""
SPLIT = """
create temp table split as
with page as (select distinct request_id, page_day, request_time from shown),
numbered as (
  select request_time, row_number() over (order by request_time) - 1 as n, count(*) over () as pages from page
)
select min(request_time) filter (n = least(trunc(pages * $train)::bigint, pages - 1)) as valid_start,
       min(request_time) filter (n = least(trunc(pages * ($train + $valid))::bigint, pages - 1)) as test_start
from numbered
"""
IMPRESSIONS = """
select request_id, user_id, item_id, request_time, shown_at, position, clicked,
  case when request_time < valid_start then 'train'
       when request_time < test_start then 'valid' else 'test' end as period
from shown, split
"""
HISTORY = """
create temp table history as
with once as (select distinct user_id, event_time, item_id from click)
select user_id, event_time,
  list(item_id) over newest_last as items, list(epoch_us(event_time)) over newest_last as times
from once
window newest_last as (
  partition by user_id order by event_time, item_id desc rows between $before preceding and current row)
qualify lead(event_time) over (partition by user_id order by event_time, item_id desc) is distinct from event_time
"""
HISTORIES = """
select user_id, event_time + interval 1 microsecond as event_timestamp,
  list_reverse(items)[:$length] as history_item_ids, list_reverse(times)[:$length] as history_clicked_at
from history
"""
PAGE_VIEWS = """
with kept as (
  select * from impression
  qualify row_number() over (partition by request_id, request_time order by clicked desc, position, item_id) <= $size
), page as (
  select request_id, user_id, request_time, period,
    list(item_id order by position, item_id) as item_ids, list(clicked order by position, item_id) as labels
  from kept group by all
)
select page.*, coalesce(list_reverse(items)[:$length], []) as history_item_ids
from page asof left join history on page.user_id = history.user_id and page.request_time > history.event_time
"""
CLICK = "select user_id, item_id, event_time, request_id from click"


def build(raw: Path, out: Path, config: SequencesConfig, threads: int) -> None:
    """Write impressions, page_views, histories and clicks, each a parquet file of the same name, into `out`."""
    db = duckdb.connect()
    db.execute(f"set threads = {threads}; set timezone = 'UTC'; set preserve_insertion_order = false")
    db.execute(f"set temp_directory = '{out / 'spilled'}'")
    longest = max(config.ctr_history, config.pretrain_history)
    db.execute(ACCEPTED, {"raw": f"{raw}/events/*.parquet"})
    db.execute(PLACED)
    db.execute("drop table event")
    db.execute(CLICKS, {"clicks_a_day": config.max_clicks_per_day})
    db.execute(PAGES)
    db.execute("drop table placed")
    db.execute(SPLIT, {"train": config.train_fraction, "valid": config.valid_fraction})
    db.execute(f"create temp view impression as {IMPRESSIONS}")
    db.execute(HISTORY.replace("$before", str(longest - 1)))
    write = {
        "impressions": "from impression",
        "clicks": CLICK,
        "histories": HISTORIES.replace("$length", str(config.ctr_history)),
        "page_views": PAGE_VIEWS.replace("$size", str(config.page_view_size)).replace(
            "$length", str(config.pretrain_history)
        ),
    }
    for name, query in write.items():
        db.execute(f"copy ({query}) to '{out / name}.parquet' (format parquet, compression snappy)")
