"""The front door: one command, `courier`, whose verbs are imported only when they are called."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from model.errors import CourierError

VERBS = {
    "world": (
        "jobs.datasets.shop:main",
        "OUT  draw a generated shop: images, page views, clicks, the truth",
    ),
    "import movielens": ("jobs.datasets.movielens:main", "SRC OUT  turn MovieLens ratings and posters into raw tables"),
    "check-leaks": (
        "jobs.leakage.check_leaks:main",
        "[WORKSPACE]  prove that nothing of the future reaches a training row, online or offline",
    ),
    "parity": (
        "jobs.features.parity.program:main",
        "[WORKSPACE]  compare the features that serving used with the offline ones of the same moment",
    ),
    "check": ("jobs.check:main", "RAW  count what the raw tables hold: read, accepted, rejected by reason"),
    "run": ("jobs.cli:run_main", "RAW  the whole road, from raw tables to a release; fresh stages are skipped"),
    "status": (
        "jobs.status:status_main",
        "a workspace's stages: fresh, stale or missing; the current release",
    ),
    "config": ("jobs.cli:config_main", "every setting that holds, as a courier.toml, and where its value came from"),
    "demo": ("courier:demo_main", "a generated shop, the whole road over it, and three example answers"),
    "ingest": (
        "jobs.cli:stage_main",
        "[stage]  raw tables of any dialect into canonical parquet, each file once (DuckDB)",
    ),
    "sequences": (
        "jobs.cli:stage_main",
        "[stage]  page views, clicks and histories (DuckDB, Spark or Beam); --date adds a day",
    ),
    "images": ("jobs.cli:images_main", "[stage]  every image reference opened, verified, hashed, resized (Beam)"),
    "pretrain": ("jobs.cli:stage_main", "[stage]  train the image encoder (torch); --method trains a baseline"),
    "embed": ("jobs.cli:stage_main", "[stage]  a unit vector for every distinct image"),
    "codebook": ("jobs.cli:stage_main", "[stage]  the k-means codebooks, which continue the current release's (FAISS)"),
    "cluster": ("jobs.cli:stage_main", "[stage]  a cluster ID per item in the codebooks"),
    "features": ("jobs.cli:stage_main", "[stage]  the feature store's offline tables"),
    "materialize": ("jobs.cli:stage_main", "[stage]  feast apply, and the newest features into the online store"),
    "clean": ("jobs.features.clean:main", "delete what has outlived its view's ttl from the online store"),
    "index": ("jobs.cli:stage_main", "[stage]  the nearest-neighbour index, with its recall (FAISS)"),
    "rows": ("jobs.cli:stage_main", "[stage]  CTR training rows by point-in-time join (Feast)"),
    "ctr": ("jobs.cli:stage_main", "[stage]  CTR models with and without images (LightGBM, torch)"),
    "evaluate": ("jobs.cli:stage_main", "[stage]  what images add: the table, the page, the confidence intervals"),
    "probe": (
        "jobs.evaluation.probe:main",
        "does a user's history find the next click by the encoder's vectors alone?",
    ),
    "compare": (
        "jobs.evaluation.compare.compare:main",
        "WORKSPACE  courier, its baselines and ablations through probe and CTR models, into one table",
    ),
    "release": (
        "jobs.releases.commands:release_main",
        "create | list | show | diff | promote | rollback | verify | push | retire | migrate",
    ),
    "gc": ("jobs.releases.garbage:main", "retire old releases and remove what no kept one is made of; --dry-run"),
    "forget": (
        "jobs.forget.command:forget_main",
        "--user ID | --item ID  remove what a workspace holds of somebody, and prove it",
    ),
    "click-stream": (
        "jobs.features.click_stream.program:main",
        "WORKSPACE --from SOURCE  clicks into the online histories (Beam, Feast)",
    ),
    "add-items": (
        "jobs.releases.add_items:main",
        "FILE  new items are found and ranked at once, before the next run makes a release of them",
    ),
    "search": ("serving.visual_search:main", "look-alikes of an item or of an image file"),
    "rank": ("serving.ranker:main", "a user's items in order of predicted click probability"),
    "serve": ("serving.app:main", "answer /search and /rank over HTTP"),
}


def usage() -> str:
    """What `courier --help` prints: every verb with one line of help."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:<{width}}{what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        ["courier: the visual half of a recommender", "", "usage: courier VERB [options]", "", *lines, ""]
        + ["`courier VERB --help` tells a verb's options.", ""]
    )


def find_verb(argv: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """The verb (one or two words) that `argv` begins with, and what follows it."""
    for words in (2, 1):
        verb = " ".join(argv[:words])
        if len(argv) >= words and verb in VERBS:
            return verb, argv[words:]
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb. An error that the user can cure is one sentence on stderr and exit status 1."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    found = find_verb(argv)
    if found is None:
        sys.exit(f"courier: no verb '{argv[0]}': `courier --help` lists them")
    verb, rest = found
    _prepare_process()
    module, _, function = VERBS[verb][0].partition(":")
    entry = getattr(import_module(module), function)
    try:
        entry([verb, *rest] if function == "stage_main" else rest)
    except SystemExit as stop:  # typer's way to return; the demo has more to say after it
        if stop.code:
            raise
    except KeyboardInterrupt:
        sys.exit("courier: stopped")
    except BrokenPipeError:  # whoever read our answer has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except CourierError as refusal:
        sys.exit(f"courier: {refusal}")
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"courier: {error.filename}: {error.strerror}: give another path, or the right to use this one")


def _prepare_process() -> None:
    """Answers go to stdout, all else to stderr; and threads that wait for each other let others work."""
    import structlog  # here, because `courier --help` must not wait for it

    # On 2 cores with one other busy process, Lite0 ran 29 images/s with OpenMP's spinning threads and 100 without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # titles hold letters that not every locale can write
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


def demo_main(argv: Sequence[str]) -> None:
    """A generated shop, the whole road over it, and three example answers: what a newcomer runs first."""
    from jobs.demo import options, pick_questions  # here, because `courier --help` must not wait for them

    workspace, size = options(argv)
    raw = workspace / "raw"
    if not (raw / "SOURCE.json").is_file():
        shop = ["--items", "300", "--users", "150", "--requests", "3000"] if size == "tiny" else []
        main(["world", str(raw), *shop])
    main(["run", str(raw), "--workspace", str(workspace), "--preset", size])
    for question in pick_questions(workspace):
        print(f"\n$ courier {' '.join(question)}", flush=True)
        main(question)


if __name__ == "__main__":
    main()
