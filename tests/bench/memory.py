"""How much memory the parts that grow with a catalogue take: `python tests/bench/memory.py [--case NAME]...`.

Each case runs in a process of its own, after another one has written what it reads. Told are the resident memory when
the case begins (its modules and what it is given), the peak of resident memory (getrusage) and the peak of anonymous
memory, which no page of a file counts towards (sampled every 5 ms), each above the first figure.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

IMAGES: Final = 200_000
CLUSTERS: Final = 1_000
PAGE_VIEWS: Final = 5_000_000
ROWS: Final = 1_000_000
USERS: Final = 250_000
RESAMPLES: Final = 2_000
SIDE: Final = 64
CHUNK: Final = 250_000
SEED: Final = 0


# --- what the cases read --------------------------------------------------------------------------------------------


def write_vectors(folder: Path) -> None:
    """`IMAGES` unit vectors around some 3,000 centres."""
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(3_000, 256)).astype(np.float32)
    vectors = centres[rng.integers(0, len(centres), IMAGES)] + rng.normal(size=(IMAGES, 256)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def write_scores(folder: Path) -> None:
    """`ROWS` rows of `USERS` users: clicked, score, user."""
    rng = np.random.default_rng(SEED)
    clicked = rng.random(ROWS) < 0.1
    np.savez(
        folder / "scores.npz",
        clicked=clicked,
        score=rng.normal(size=ROWS) + clicked,
        user=rng.integers(0, USERS, ROWS),
    )


def write_page_views(folder: Path) -> None:
    """A sequences and an images artifact's tables: `PAGE_VIEWS` pages of five items, five clicks before each."""
    rng = np.random.default_rng(SEED)
    (folder / "page_views").mkdir()
    items = np.array([f"item-{n:08d}" for n in range(IMAGES)])
    status = np.where(np.arange(IMAGES) % 20 == 0, "broken", "ok")
    pq.write_table(
        pa.table(
            {
                "item_id": items,
                "image_id": [f"{n * 7_919:032x}" for n in range(IMAGES)],
                "category": [f"c{n % 40}" for n in range(IMAGES)],
                "title": [f"Item of kind {n % 40}, number {n}" for n in range(IMAGES)],
                "status": status,
            }
        ),
        folder / "items.parquet",
    )
    names = pa.array(items)
    for start in range(0, PAGE_VIEWS, CHUNK):
        n = np.arange(start, start + CHUNK)
        five = pa.array(np.arange(0, 5 * CHUNK + 1, 5, dtype=np.int32))
        lists = [
            pa.ListArray.from_arrays(five, names.take(pa.array(rng.integers(0, IMAGES, 5 * CHUNK)))) for _ in range(2)
        ]
        labels = pa.array((rng.random(5 * CHUNK) < 0.1).astype(np.int8))
        table = pa.table(
            {
                "request_id": pa.array([f"request-{number:09d}" for number in rng.permutation(n)]),
                "user_id": pa.array([f"user-{number:08d}" for number in rng.integers(0, PAGE_VIEWS // 10, CHUNK)]),
                "request_time": pa.array(rng.integers(0, 30 * 86_400_000_000, CHUNK), pa.timestamp("us", "UTC")),
                "item_ids": lists[0],
                "labels": pa.ListArray.from_arrays(five, labels),
                "history_item_ids": lists[1],
                "period": pa.array(["train"] * CHUNK),
            }
        )
        pq.write_table(table, folder / "page_views" / f"part-{start // CHUNK:05d}.parquet", row_group_size=122_880)


def write_catalogue(folder: Path) -> None:
    """A pretrain and an images artifact: a small random network, and `IMAGES` pictures of `SIDE` pixels."""
    import torch
    from PIL import Image

    from model import artifact
    from model.courier.config import CourierConfig
    from model.courier.data.images import to_png
    from model.courier.network.encoder import build_encoder, save_encoder
    from model.space import Preprocessing

    config = CourierConfig(backbone="small", backbone_weights="random", image_size=SIDE)
    torch.manual_seed(SEED)
    with artifact.write(folder / "pretrain", kind="pretrain", inputs={}, config=asdict(config)) as draft:
        facts = save_encoder(build_encoder(config), draft.path, Preprocessing(size=SIDE))
        draft.facts |= facts | {"encoder": "bench"}
    rng = np.random.default_rng(SEED)
    patches = rng.integers(0, 256, (256, 8, 8, 3), np.uint8).repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
    pngs = [to_png(Image.fromarray(one)) for one in patches]
    ids = np.array([f"{n * 7_919:032x}" for n in range(IMAGES)])
    with artifact.write(folder / "images", kind="images", inputs={}, config={"size": SIDE}) as draft:
        (draft.path / "shards").mkdir()
        for shard in range(8):
            held = ids[shard::8]
            table = pa.table({"image_id": held, "image": [pngs[n % 256] for n in range(len(held))]})
            path = draft.path / "shards" / f"images-{shard:05d}-of-00008.parquet"
            pq.write_table(table, path, row_group_size=1024, compression="none")
        items = {"item_id": ids, "image_id": ids, "category": ["c"] * IMAGES, "status": ["ok"] * IMAGES}
        pq.write_table(pa.table(items), draft.path / "items.parquet")


# --- the cases: each gives what is measured, ready to be called ------------------------------------------------------


def codebook(folder: Path) -> Callable[[], Any]:
    """Fit a codebook on all vectors, and the code of each."""
    from model.codebook import Codebooks

    vectors = np.load(folder / "vectors.npy")
    return lambda: Codebooks.fit(vectors, codebooks=1, clusters=CLUSTERS, iterations=2).codes(vectors)


def bootstrap(folder: Path) -> Callable[[], Any]:
    """An AUC and a mean in every resample of the users."""
    from model.metrics import UserBootstrap

    with np.load(folder / "scores.npz") as held:
        clicked, score, user = held["clicked"], held["score"], held["user"]

    def run() -> None:
        resamples = UserBootstrap(user, replicates=RESAMPLES, seed=SEED)
        resamples.aucs(clicked, score)
        resamples.means(score)

    return run


def page_views(folder: Path) -> Callable[[], Any]:
    """Read all page views as arrays."""
    from model.courier.data.page_views import read_page_views

    return lambda: read_page_views(folder, folder)


def embed(folder: Path) -> Callable[[], Any]:
    """Embed every image, by a stand-in for the network that takes no time."""
    from model.courier.inference import embed as stage

    seen = np.random.default_rng(SEED).normal(size=(SIDE, 256)).astype(np.float32)

    def vectors_of(pixels: np.ndarray) -> np.ndarray:
        found = pixels[:, :, 0, 0] @ seen
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    stage._runtime = lambda *_: vectors_of
    return lambda: stage.build(pretrain=folder / "pretrain", images=folder / "images", out=_next(folder / "embed"))


def embed_again(folder: Path) -> Callable[[], Any]:
    """Build the embed stage anew where every vector is known: the case before has embedded them."""
    return embed(folder)


def _next(folder: Path) -> Path:
    return folder / str(len(list(folder.iterdir())) + 1 if folder.is_dir() else 1)


CASES: Final[dict[str, tuple[Callable[[Path], None] | None, Callable[[Path], Callable[[], Any]], str]]] = {
    "codebook": (write_vectors, codebook, f"{IMAGES:,} vectors x {CLUSTERS:,} clusters, 2 iterations"),
    "bootstrap": (write_scores, bootstrap, f"{RESAMPLES:,} resamples of {USERS:,} users, {ROWS:,} rows"),
    "page_views": (write_page_views, page_views, f"{PAGE_VIEWS:,} page views of {IMAGES:,} items"),
    "embed": (write_catalogue, embed, f"{IMAGES:,} images of {SIDE} px, none known"),
    "embed_again": (None, embed_again, f"{IMAGES:,} images of {SIDE} px, all known"),
}


# --- measuring ------------------------------------------------------------------------------------------------------


def anonymous() -> int:
    """Bytes of this process's anonymous memory."""
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched() -> Iterator[list[int]]:
    """The peak of anonymous memory during the block, in the list's one place."""
    peak, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def measure(name: str, folder: Path) -> dict[str, float]:
    """Run a case in this process; bytes and seconds."""
    run = CASES[name][1](folder)
    before, anonymous_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, anonymous()
    begun = time.perf_counter()
    with watched() as peak:
        run()
    return {
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
        "anonymous": peak[0] - anonymous_before,
        "seconds": time.perf_counter() - begun,
    }


def apart(*arguments: str) -> str:
    """What this program says in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1] if done.stdout else ""


def main(
    case: Annotated[list[str] | None, typer.Option(help="which; all, if none is named")] = None,
    scratch: Annotated[Path | None, typer.Option(help="where what the cases read is kept")] = None,
    write: Annotated[str, typer.Option(hidden=True)] = "",
    run: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, and print a line of the table for each case."""
    if scratch is not None and write:
        if (writer := CASES[write][0]) is not None:
            writer(scratch)
        return
    if scratch is not None and run:
        print(json.dumps(measure(run, scratch)))
        return
    print("| case | what | at the start, MB | peak above it, MB | of it anonymous, MB | s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        for name in case or CASES:
            apart("--scratch", place, "--write", name)
            found = json.loads(apart("--scratch", place, "--run", name))
            sizes = " | ".join(f"{found[key] / 1e6:,.0f}" for key in ("before", "peak", "anonymous"))
            print(f"| {name} | {CASES[name][2]} | {sizes} | {found['seconds']:.1f} |", flush=True)
    print(f"seed {SEED}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")


if __name__ == "__main__":
    typer.run(main)
