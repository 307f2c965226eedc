"""Compare encoders: courier, its baselines and its ablations through the probe and the CTR models, into one table."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import structlog
import typer
from rich.console import Console
from rich.table import Table

from jobs.config import CodebookConfig
from jobs.evaluation import probe
from jobs.evaluation.compare.figures import COMPARABLE, OUTSIDE, PARTS, Keyed, Results, compare
from jobs.evaluation.compare.runs import Bench, Entrant, Failure, ask, read_measured, read_scores, run_all
from jobs.evaluation.probe import Attributes, Match, Period, fresh
from jobs.html import comparison
from jobs.options import call
from jobs.paths import local_folder
from jobs.pipeline import stage_states
from jobs.raw.folder import source
from jobs.workspace import StageError, Workspace, locked, open_workspace
from model import artifact, strict_json
from model.courier.config import CourierConfig
from model.courier.inference.probe import parts_of
from model.courier.training.methods import METHODS
from model.ctr.config import MODELS
from model.ctr.evaluation.encoders import Sample, auc_sample, mean_sample
from model.ctr.evaluation.evaluate import TestRows
from model.ctr.train import progress_bar
from model.errors import CourierError
from model.metrics import UserBootstrap
from model.settings import flatten, full_name, parse_settings

log = structlog.get_logger()

DEFAULT_METHODS: Final = ",".join(METHODS)
CODEBOOK: Final = tuple(name for name in flatten(CodebookConfig()) if name != "seed")
UNBOUNDED: Final = 10_000  # columns of text


# --- from artifacts to samples ---------------------------------------------------------------------------------------


def gather(bench: Bench, runs: Sequence[tuple[str, int]], *, bootstrap: int, seed: int) -> list[Results]:
    """The figures of finished runs in every resample, the baselines' of their seeds first.

    runs: label and seed of each, up to date; what an earlier run left where a later one failed is none of them.
    """
    rows = TestRows.of(bench.tables["test"])
    draws = UserBootstrap(rows.users, replicates=bootstrap, seed=seed)
    masks = {"all": np.ones(len(rows.clicked), dtype=bool), "warm": ~rows.cold, "cold": rows.cold}
    outside = OUTSIDE if bench.styles is not None else OUTSIDE[:1]
    wanted = [(label, k) for label in outside for k in sorted({k for _, k in runs})] + list(runs)
    found: dict[str, Results] = {}
    questions = None
    with progress_bar() as progress:
        task = progress.add_task("bootstrap", total=len(wanted), figures=f"{bootstrap} resamples of users")
        for label, k in wanted:
            folder = bench.run_folder(label, k)
            result = found.setdefault(label, Results(label))
            for name, scores in read_scores(folder / "scores").items():
                samples = {(*name.split("/"), part): auc_sample(rows, scores, masks[part], draws) for part in PARTS}
                _put(result.ctr, k, samples)
            if label not in OUTSIDE:
                questions = questions or ask(bench, folder / "embed")
                _put(result.probe, k, _probe_samples(questions, folder / "probe", bootstrap, seed))
                trained = artifact.read(folder / "pretrain", kind="pretrain")
                result.facts[k] = {**trained.facts, **trained.notes}
            progress.update(task, advance=1)
    return list(found.values())


def _probe_samples(
    questions: probe.Questions, folder: Path, bootstrap: int, seed: int
) -> dict[tuple[str, ...], Sample]:
    """Every figure in every resample; where an attribute is matched, also the AUC of the clicks that have it."""
    clicks, measured = questions.clicks, read_measured(folder)
    draws = UserBootstrap(clicks.user, replicates=bootstrap, seed=seed)
    values = {(kind, name): one for kind, figures in measured.items() for name, one in figures.items()}
    if probe.MATCHED in measured:
        asked = ~np.isnan(measured[probe.MATCHED]["auc"])
        values[COMPARABLE, "auc"] = np.where(asked, measured[probe.POPULAR]["auc"], np.nan)
    return {
        (*key, part): mean_sample(one, keep & ~np.isnan(one), draws)
        for key, one in values.items()
        for part, keep in parts_of(clicks).items()
    }


def _put(into: Keyed, seed: int, samples: Mapping[tuple[str, ...], Sample]) -> None:
    for key, sample in samples.items():
        into.setdefault(key, {})[seed] = sample


# --- command line ----------------------------------------------------------------------------------------------------


def entrants_of(methods: str, variants: Sequence[str]) -> list[Entrant]:
    """What the command line names: methods by name, and variants as NAME:field=value,field=value.

    Raises CourierError for an unknown method or setting, a label that is taken or can be no folder's name, or nothing.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        if name not in METHODS:
            raise CourierError(f"--methods: unknown method {name!r}: choose among {', '.join(METHODS)}")
    found = [Entrant(name, {"method": name}) for name in names]
    for variant in variants:
        label, _, settings = variant.partition(":")
        if not label.replace("-", "").replace("_", "").replace(".", "").isalnum() or not settings:
            raise CourierError(f"--variant {variant!r}: write NAME:field=value,field=value")
        found.append(Entrant(label, *settings_of(settings.split(","), of_one_method=True)))
    labels = [entrant.label for entrant in found]
    for label in labels:
        if labels.count(label) > 1 or label in OUTSIDE:
            raise CourierError(f"the name {label!r} is taken: give every method and variant a name of its own")
    if not found:
        raise CourierError("nothing to compare: give --methods or --variant")
    return found


def settings_of(given: Sequence[str], *, of_one_method: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """`name=value` strings as settings of CourierConfig, by their dotted names, and of CodebookConfig.

    heads stands for courier.heads where only one method has it, or, with `of_one_method`, where the method that is
    given (or else courier) has it. Raises CourierError for a bad name or value.
    """
    pairs = dict(setting.partition("=")[::2] for setting in given)
    method = pairs.get("method", "courier") if of_one_method else ""
    pretrain, codebook = [], []
    for setting in given:
        name, _, _ = setting.partition("=")
        if name == "seed":
            raise CourierError("setting seed is every run's own: leave it out, --seeds gives them")
        if name in CODEBOOK:
            codebook.append(setting)
        else:
            try:
                pretrain.append(full_name(CourierConfig(), name, within=method) + setting.removeprefix(name))
            except CourierError as error:
                raise CourierError(f"{error}; of the codebooks {', '.join(CODEBOOK)}") from None
    chosen = parse_settings(CodebookConfig(), codebook)
    CodebookConfig(**chosen)  # a size that cannot be is refused before anything is trained
    return parse_settings(CourierConfig(), pretrain), chosen


def bench_of(workspace: Workspace, *, models: Sequence[str], setting: Sequence[str], **asked: Any) -> Bench:
    """What the runs of a workspace share. setting: `name=value` for every method.

    Raises StageError where sequences or images are not up to date, or no CTR rows were made from the sequences.
    """
    stages = stage_states(workspace)
    sequences, images = (fresh(stages, name) for name in ("sequences", "images"))
    base, codebook = settings_of(setting)
    return Bench(
        folder=workspace.folder / "compare",
        sequences=sequences,
        images=images,
        rows=_rows(workspace.folder, sequences),
        raw=workspace.raw,
        pretrain=workspace.config.pretrain,
        base=base,
        codebook=replace(workspace.config.codebook, **codebook),
        ctr=replace(workspace.config.ctr, models=tuple(models)),
        **asked,
    )


def _rows(workspace: Path, sequences: Path) -> Path:
    """The newest CTR rows that were made from these sequences: whichever encoder gave them their cluster IDs."""
    wanted, found = artifact.digest(sequences), []
    for path in (workspace / "rows").glob(f"*/{artifact.MANIFEST}"):
        manifest = artifact.read(path.parent, kind="rows")
        if manifest.inputs["sequences"] == wanted:
            found.append((manifest.created_at, path.parent))
    if not found:
        raise StageError(f"{workspace} holds no CTR rows of its present sequences: `courier run` makes them")
    return max(found)[1]


def command(
    workspace: Annotated[Path, typer.Argument(parser=local_folder, metavar="WORKSPACE", help="one that was run")],
    methods: Annotated[str, typer.Option(help="names with commas; the first is held against all others")] = (
        DEFAULT_METHODS
    ),
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="one more, as NAME:field=value,field=value with fields of CourierConfig or of CodebookConfig "
            "(clusters, later_clusters, codebooks); may be repeated"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each, with seeds 0, 1, ...")] = 3,
    setting: Annotated[list[str] | None, typer.Option("--set", help="name=value, for every method")] = None,
    models: Annotated[str, typer.Option(help=f"CTR models: {', '.join(MODELS)}")] = MODELS[0],
    period: Annotated[Period, typer.Option(help="whose clicks the probe asks about")] = "valid",
    match: Match = None,
    attributes: Attributes = None,
    bootstrap: Annotated[int, typer.Option(min=1, help="resamples of users")] = 2000,
) -> None:
    """All methods through probe and CTR models on a workspace's own data, into one table with intervals.

    Every run lies in WORKSPACE/compare and is skipped while it stands, so a comparison that was stopped goes on.
    """
    opened = open_workspace(workspace)
    entrants = entrants_of(methods, variant or ())
    chosen = [model for model in models.split(",") if model]
    if unknown := set(chosen) - set(MODELS):
        raise CourierError(f"--models: unknown {', '.join(sorted(unknown))}: choose among {', '.join(MODELS)}")
    asked = {"period": period, "match": probe.attribute(match, attributes)}
    bench = bench_of(opened, models=chosen, setting=setting or (), **asked)
    bench.folder.mkdir(exist_ok=True)
    with locked(bench.folder):
        failures = run_all(bench, entrants, range(seeds))
        found = _summed(bench, opened, entrants, failures, range(seeds), bootstrap)
    print_tables(found)
    if failures:
        raise typer.Exit(1)


def _summed(
    bench: Bench,
    workspace: Workspace,
    entrants: Sequence[Entrant],
    failures: Sequence[Failure],
    seeds: range,
    bootstrap: int,
) -> dict[str, Any]:
    """The comparison, written beside its runs and into the workspace's reports."""
    failed = {(failure.label, failure.seed) for failure in failures}
    runs = [(entrant.label, k) for entrant in entrants for k in seeds if (entrant.label, k) not in failed]
    if not runs:
        raise CourierError(f"every run failed; {failures[0].label}, seed {failures[0].seed}: {failures[0].error}")
    found = compare(
        gather(bench, runs, bootstrap=bootstrap, seed=0), reference=entrants[0].label, bootstrap=bootstrap, seed=0
    )
    rows = TestRows.of(bench.tables["test"])
    found |= {
        "dataset": {
            "name": source(workspace.raw).get("name", workspace.raw.name),
            "sampled_negatives": bool(source(workspace.raw).get("sampled_negatives", False)),
            "test_rows": len(rows.clicked),
            "cold_test_rows": int(rows.cold.sum()),
            "test_users": len(np.unique(rows.users)),
        },
        "settings": {entrant.label: {**entrant.settings, **entrant.codebook} for entrant in entrants},
        "bootstrap": bootstrap,
        "asked": {"period": bench.period, "match": bench.match.name if bench.match else None},
        "failures": [asdict(failure) for failure in failures],
    }
    reports = workspace.folder / "reports"
    reports.mkdir(exist_ok=True)
    artifact.write_whole(reports / "comparison.json", strict_json.dumps(found, indent=1).encode())
    artifact.write_whole(reports / "comparison.html", comparison.render(found).encode())
    log.info("compared", reports=str(reports), failed=len(failures))
    return found


def print_tables(found: Mapping[str, Any]) -> None:
    """The comparison's tables on stdout."""
    console = Console()
    for sheet in comparison.sheets(found):
        table = Table(title=sheet.title, caption=sheet.caption)
        for number, name in enumerate(sheet.columns):
            table.add_column(name.replace(", ", ",\n"), justify="left" if number == 0 else "right", no_wrap=True)
        for line in sheet.lines:
            table.add_row(*line)
        console.width = max(shutil.get_terminal_size().columns, _natural_width(console, table))
        console.print(table)
    for failure in found["failures"]:
        console.print(f"failed: {failure['label']}, seed {failure['seed']}: {failure['error']}", markup=False)


def _natural_width(console: Console, table: Table) -> int:
    return console.measure(table, options=console.options.update_width(UNBOUNDED)).maximum  # a cell is never cut


def main(argv: Sequence[str] | None = None) -> None:
    """`courier compare`."""
    call(command, "courier compare", list(argv or ()))
