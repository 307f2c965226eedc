"""Ask the hosts and object stores of a finished images artifact whether any of its far images has changed since.

A raw folder's digest tells of files in it, and nothing of what lies behind an address. Nothing is written here.
"""

from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from jobs.config import ImagesConfig
from jobs.images.fetch.references import Fetcher, HttpsConfig, is_far
from jobs.images.look import Looker, Reference
from jobs.images.outcome import Outcome
from jobs.images.store import ImageStore, open_store
from jobs.rules import items
from model.artifact import AnyPath

THREADS: Final = 16

Recorded = tuple[str, str | None]  # reason, sha256 of the bytes


def far_images_changed(
    built: Path, store: Path, raw: AnyPath, config: ImagesConfig, fetcher: Fetcher | None = None
) -> bool:
    """Whether another run would find another image, or another fate, behind one of the artifact's far references.

    built: the artifact's folder. store: of examined images; its fingerprints make a request a conditional one. It
    ends with the first change. fetcher: for tests.
    """
    recorded = _recorded(built)  # of a raw folder at a URL the digest has asked about each file already
    if not recorded:
        return False
    far = fetcher or Fetcher(raw, config.max_bytes, HttpsConfig(allowed_hosts=config.allowed_hosts))
    look = Looker(far, config, retry_failed=False)
    pool = ThreadPoolExecutor(THREADS)
    try:
        looks = {pool.submit(look, one): one.words for one in _references(recorded, open_store(store, config))}
        return any(_differs(recorded[looks[done]], done.result().outcome) for done in as_completed(looks))
    finally:
        pool.shutdown(cancel_futures=True)
        far.close()


def _recorded(built: Path) -> dict[str, Recorded]:
    """What the artifact says of each far reference."""
    table = pq.read_table(built / "items.parquet", columns=["image_uri", "reason", "bytes_sha256"])
    rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    return {uri: (reason, sha256) for uri, reason, sha256 in rows if uri is not None and is_far(uri)}


def _references(recorded: dict[str, Recorded], store: ImageStore) -> list[Reference]:
    known: dict[str, Outcome] = {}
    for number in {store.number(uri) for uri in recorded}:
        known |= store.known(number)
    return [Reference(uri, uri, known.get(uri)) for uri in recorded]


def _differs(recorded: Recorded, now: Outcome) -> bool:
    reason, sha256 = recorded
    if now.image_id is not None:
        return now.bytes_sha256 != sha256 or reason not in ("", items.SHARED_BY_MANY)
    # One outage is as good as another: none of them is news worth a build.
    return now.reason != reason and not {now.reason, reason} <= items.RETRYABLE
