"""`courier release`: make, list, show, compare, promote, roll back, verify and retire releases; move their tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.orm import Session

from infra.migrations.migrate import NEWEST, migrate
from jobs.config import PromotionConfig
from jobs.options import AsJson, By, ConfigFile, Folder, Given, LastRaw, Preset, Promote, Why
from jobs.paths import any_path
from jobs.releases.added import faults as faults_of_additions
from jobs.releases.build import document
from jobs.releases.compare import differences
from jobs.releases.promotion import Decision, Reasons, decide
from jobs.releases.verify import faults
from jobs.workspace import open_workspace, releases_url
from model import artifact, releases, strict_json
from model.artifact import AnyPath
from model.release_database import NoRelease, is_made, reading, writing
from model.releases import Act, Release

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Which = Annotated[str | None, typer.Argument(metavar="RELEASE", help="its id; default: the one that answers")]
Named = Annotated[str, typer.Argument(metavar="RELEASE", help="its id, as `courier release list` prints it")]
GATES_FAILED = 3  # the exit status of a command that made a release and did not promote it


@contextmanager
def opened(workspace: Path, *, writes: bool = False) -> Iterator[Session]:
    """A transaction on the database of releases. Raises NoRelease where it has none, SchemaMismatch."""
    url = releases_url(workspace)
    if not is_made(url):
        raise NoRelease(f"{workspace} has no release: `courier run RAW --workspace {workspace}` makes one")
    with (writing if writes else reading)(url) as session:
        yield session


@app.command()
def create(
    raw: LastRaw = None,
    workspace: Folder = Path("workspace"),
    preset: Preset = None,
    config: ConfigFile = None,
    given: Given = None,
    promote: Promote = "never",
    by: By = None,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Record the release that the stages make; they must be up to date. Exit status 3 where a gate fails."""
    from jobs.pipeline import run_stages  # for this command alone

    asked = open_workspace(workspace, raw, preset=preset, config_file=config, given=given or ())
    folders: dict[str, Path] = {}
    run_stages(asked, only="release", folders=folders)
    decision = decide_and_tell(
        asked.folder, folders["release"], replace(asked.config.promotion, mode=promote or "never"), by, why
    )
    _answer(asdict(decision) | {"answers": decision.answers}, _said(decision), as_json=as_json)
    if decision.failed:
        raise typer.Exit(GATES_FAILED)


def decide_and_tell(workspace: Path, folder: Path, config: PromotionConfig, by: str | None, why: str) -> Decision:
    """Let a release stage's artifact answer or not, and say on stderr which gates failed."""
    release_id = artifact.read(folder, kind="release").facts["release_id"]
    reasons = Reasons(by=by or releases.user_name(), why=why)
    decision = decide(workspace, releases_url(workspace), release_id, config, reasons)
    for sentence in decision.failed:
        Console(stderr=True, soft_wrap=True).print(f"{release_id} is not promoted: {sentence}", markup=False)
    return decision


def _said(decision: Decision) -> str:
    if decision.answers:
        return f"{decision.release_id} answers"
    return f"{decision.release_id} does not answer: {decision.because or '; '.join(decision.failed)}"


@app.command("list")
def list_all(workspace: Folder = Path("workspace"), as_json: AsJson = False) -> None:
    """Every release, newest first, and which one answers."""
    with opened(workspace) as session:
        known = releases.list_releases(session)
        now, before = releases.current_id(session), releases.previous_id(session)
    if as_json:
        answer = {"current": now, "previous": before, "releases": [_document(one) for one in known]}
        print(strict_json.dumps(answer, indent=1))
        return
    table = Table(title=str(workspace))
    for name in ("release", "made at (UTC)", "space", "CTR model", "AUC", ""):
        table.add_column(name, no_wrap=name == "release")  # an id that is cut cannot be promoted
    for one in known:
        stands = {now: "answers", before: "answered before"}.get(one.release_id, "retired" if one.retired_at else "")
        auc = one.metrics.get("auc")
        figures = (one.space_id, one.ctr_model, "" if auc is None else f"{auc:.4f}")
        table.add_row(one.release_id, f"{one.created_at:%Y-%m-%d %H:%M}", *figures, stands)
    Console().print(table)


@app.command()
def show(release: Which = None, workspace: Folder = Path("workspace"), as_json: AsJson = False) -> None:
    """What a release is made of, what was measured of it, and who did what to it and why."""
    with opened(workspace) as session:
        found = _asked(session, release, workspace)
        history = releases.acts(session, found.release_id)
        answers = releases.current_id(session) == found.release_id
    if as_json:
        acts = [{**asdict(act), "done_at": act.done_at.isoformat()} for act in history]
        print(strict_json.dumps({**_document(found), "answers": answers, "acts": acts}, indent=1))
        return
    table = Table("stage", "artifact", "digest", title=f"{found.release_id}{', which answers' if answers else ''}")
    for stage, where in found.artifacts.items():
        table.add_row(stage, where["path"], where["digest"][:12])
    Console().print(table)
    print(f"space {found.space_id}, codebook {found.codebook_id or 'not named'}, CTR model {found.ctr_model}")
    print("metrics " + strict_json.dumps(dict(found.metrics)))
    for act in history:
        print(_told(act, found.release_id))


def _told(act: Act, release_id: str) -> str:
    what = act.act.replace("_", " ")
    if act.previous_id == release_id:
        what = f"left for {act.release_id}, which was {what}"
    why = f": {act.why}" if act.why else ""
    return f"{act.done_at:%Y-%m-%d %H:%M} {act.done_by}: {what}{why}"


@app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="a release")],
    other: Annotated[str, typer.Argument(metavar="B", help="another")],
    workspace: Folder = Path("workspace"),
    as_json: AsJson = False,
) -> None:
    """In what two releases differ: space, codebook, metrics, artifacts and the settings that made them."""
    with opened(workspace) as session:
        found = differences(workspace, releases.find(session, one), releases.find(session, other))
    if as_json:
        print(strict_json.dumps({"releases": [one, other], "differ": found}, indent=1))
        return
    table = Table("", one, other)
    for name, pair in _flat(found):
        table.add_row(name, *(escape("" if value is None else str(value)) for value in pair))
    Console().print(table)


def _flat(found: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@app.command()
def promote(
    release: Named, workspace: Folder = Path("workspace"), by: By = None, why: Why = "", as_json: AsJson = False
) -> None:
    """Let this release answer, whatever its gates say, until another one is promoted."""
    with opened(workspace, writes=True) as session:
        now = releases.promote(session, release, now=datetime.now(UTC), by=by or releases.user_name(), why=why)
    _answer_with(now, "answers", as_json)


@app.command()
def rollback(workspace: Folder = Path("workspace"), by: By = None, why: Why = "", as_json: AsJson = False) -> None:
    """Let the release that answered before the current one answer again."""
    with opened(workspace, writes=True) as session:
        now = releases.roll_back(session, now=datetime.now(UTC), by=by or releases.user_name(), why=why)
    _answer_with(now, "answers again", as_json)


@app.command()
def verify(release: Which = None, workspace: Folder = Path("workspace"), as_json: AsJson = False) -> None:
    """Read every byte of a release's artifacts and of items added to it; exit status 1 and each fault's sentence."""
    with opened(workspace) as session:
        found = _asked(session, release, workspace)
        damaged = faults_of_additions(workspace, session, found)
    wrong = faults(workspace, found) + damaged
    whole = f"{found.release_id} is whole: {len(found.artifacts)} artifacts, space {found.space_id}"
    _answer({"release": found.release_id, "faults": wrong}, "\n".join(wrong) or whole, as_json=as_json)
    if wrong:
        raise typer.Exit(1)


@app.command()
def push(
    to: Annotated[str, typer.Option(metavar="URL", help="a folder or an object store, as s3://bucket/shop")],
    release: Which = None,
    workspace: Folder = Path("workspace"),
    as_json: AsJson = False,
) -> None:
    """Send a release's artifacts to where servers fetch them (COURIER_ARTIFACTS); what is there already stays."""
    with opened(workspace) as session:
        found = _asked(session, release, workspace)
    sent = [stage for stage in found.artifacts if _send(found, stage, workspace, any_path(to))]
    _answer({"release": found.release_id, "sent": sent}, f"{found.release_id}: sent {len(sent)}", as_json=as_json)


def _send(release: Release, stage: str, workspace: Path, to: AnyPath) -> bool:
    where = release.artifacts[stage]
    out = to / where["path"]
    with suppress(artifact.ArtifactMissing, artifact.ArtifactMismatch):
        if artifact.identity(artifact.read(out, kind=stage)) == where["digest"]:
            return False
    artifact.copy(workspace / where["path"], out, kind=stage)
    return True


@app.command()
def retire(
    release: Named, workspace: Folder = Path("workspace"), by: By = None, why: Why = "", as_json: AsJson = False
) -> None:
    """Say that a release will not answer any more; never the current one or the one before."""
    with opened(workspace, writes=True) as session:
        gone = releases.retire(session, release, now=datetime.now(UTC), by=by or releases.user_name(), why=why)
    _answer_with(gone, "is retired", as_json)


@app.command("migrate")
def migrate_tables(
    workspace: Folder = Path("workspace"),
    to: Annotated[str, typer.Option(metavar="MIGRATION", help="default: the newest")] = NEWEST,
    as_json: AsJson = False,
) -> None:
    """Bring the tables of the database of releases to a migration, up or down."""
    found = migrate(releases_url(workspace), to)
    _answer({"migration": found}, f"the database of releases is at migration {found}", as_json=as_json)


def _asked(session: Session, release: str | None, workspace: Path) -> Release:
    if release is not None:
        return releases.find(session, release)
    now = releases.answering(session)
    if now is None:
        raise NoRelease(f"no release of {workspace} answers: name one of those that `courier release list` prints")
    return now


def _document(release: Release) -> dict[str, Any]:
    retired = release.retired_at
    return document(release) | {"retired_at": retired.isoformat() if retired else None}


def _answer_with(release: Release, what: str, as_json: bool) -> None:
    about = {"release": release.release_id, "space_id": release.space_id, "ctr_model": release.ctr_model}
    _answer(about, f"{release.release_id} {what}", as_json=as_json)


def _answer(values: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    print(strict_json.dumps(values, indent=1) if as_json else sentence)


def release_main(argv: Sequence[str]) -> None:
    """`courier release`."""
    app(args=list(argv), prog_name="courier release")
