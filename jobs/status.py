"""How a workspace stands: `courier status`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jobs.features.freshness import freshness
from jobs.options import Folder, call
from jobs.pipeline import State, age_in_days, explain, old_encoder, require_stage, stage_states
from jobs.raw.canonical import canonical_table
from jobs.releases.added import since_release
from jobs.releases.current import current_release
from jobs.sequences.daily.log import read_watermark
from jobs.workspace import Workspace, open_workspace
from model import artifact, strict_json


def status(
    workspace: Folder = Path("workspace"),
    why: Annotated[str | None, typer.Option(metavar="STAGE", help="say what made this stage stale")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Every stage: fresh, pinned, stale or missing; how fresh the online store's views are; the current release."""
    opened = open_workspace(workspace)
    if why is not None:
        require_stage(why)
        reasons = explain(opened, why)
        print(strict_json.dumps({"stage": why, "reasons": reasons}, indent=1) if as_json else "\n".join(reasons))
        return
    held = held_by_log(opened)
    added = since_release(opened.folder)
    states, now = stage_states(opened), datetime.now(UTC)
    rows = [_status_row(opened.folder, name, state, now) for name, state in states.items()]
    views = [view.facts(now) for view in freshness(opened.folder)]
    old = old_encoder(opened, states, now)
    current = current_release(opened.folder)
    if as_json:
        answer = {
            "raw": str(opened.raw),
            "preset": opened.settings.preset,
            "stages": rows,
            "views": views,
            "release": current,
            "old_encoder": old,
            "log": held,
            "added": added,
        }
        print(strict_json.dumps(answer, indent=1))
        return
    table = Table(
        "stage", "state", "version", "built at (UTC)", "MB", title=f"{opened.folder}, preset {opened.settings.preset}"
    )
    for row in rows:
        shown = row | {"state": f"pinned, {row['days']} days old"} if row["state"] == "pinned" else row
        table.add_row(*(str(shown[column] or "") for column in ("stage", "state", "version", "built_at", "megabytes")))
    Console().print(table)
    if views:
        table = Table("view", "rows", "newest row (UTC)", "age", title="the online store, as it was last loaded")
        for row in views:
            table.add_row(row["view"], f"{row['rows']:,}", (row["newest"] or "")[:19], _age(row["age_seconds"]))
        Console().print(table)
    Console().print(f"current release: {current or 'none'}")
    if old:
        Console().print(old, soft_wrap=True)
    if added:
        Console().print(added["said"], soft_wrap=True)
    if held:
        Console().print(held["said"])


def held_by_log(workspace: Workspace) -> dict[str, Any] | None:
    """Which days the daily log holds, and what it leaves out of the raw events there are now; None without a log."""
    mark = read_watermark(workspace.folder)
    if mark is None:
        return None
    from jobs.sequences.build import daily_engine  # with an engine, which a workspace without a log need not load
    from jobs.sequences.daily.raw_days import known_left_out, left_out_now, sentence

    ingest = stage_states(workspace, only="ingest")["ingest"]
    if ingest.fresh and ingest.folder is not None:
        by = daily_engine(workspace.folder, workspace.config.engine, workspace.config.master)
        events = canonical_table(ingest.folder, "events", workspace.raw)
        out = left_out_now(events, workspace.folder, mark, by.count_days)
    else:
        out = known_left_out(workspace.folder, mark, datetime.now(UTC))
    days = {"first": mark.first.isoformat(), "last": mark.last.isoformat()}
    known = "" if ingest.fresh else "; the raw files have changed since, say `courier ingest` to take them in"
    return days | {"left_out": out.facts() if out else None, "said": sentence(mark, out) + known}


def _status_row(workspace: Path, name: str, state: State, now: datetime) -> dict[str, Any]:
    if state.fresh and state.folder is not None:
        manifest = artifact.read(state.folder, kind=name)
        size = sum(facts["bytes"] for facts in manifest.files.values()) / 1e6
        built_at = manifest.created_at[:19]
        return {
            "stage": name,
            "state": "pinned" if state.pinned else "fresh",
            "version": state.folder.name,
            "built_at": built_at,
            "days": age_in_days(state, now),
            "megabytes": round(size, 1),
        }
    older = any((workspace / name).glob(f"*/{artifact.MANIFEST}"))
    return {
        "stage": name,
        "state": "stale" if older else "missing",
        "version": None,
        "built_at": None,
        "days": None,
        "megabytes": None,
    }


def _age(seconds: int | None) -> str:
    if seconds is None:
        return ""
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.0f} days"


def status_main(argv: Sequence[str]) -> None:
    """`courier status`."""
    call(status, "courier status", argv)
