"""Ask the hosts and object stores of a finished images artifact whether any of its far images has changed since.

A raw folder's digest tells of files in it, and nothing of what lies behind an address. Nothing is written here.
"""

from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from jobs.config import ImagesConfig
from jobs.images import store as image_store
from jobs.images.fetch.references import Fetcher, HttpsConfig, is_far
from jobs.images.look import Looker, Reference
from jobs.images.outcome import Outcome
from jobs.images.store import ImageStore
from jobs.rules import items as catalogue
from model.artifact import AnyPath

THREADS: Final = 16

Told = tuple[str, str | None]  # reason, sha256 of the bytes


def far_images_changed(
    built: Path, store: Path, raw: AnyPath, config: ImagesConfig, fetcher: Fetcher | None = None
) -> bool:
    """Whether another run would find another image, or another fate, behind one of the artifact's far references.

    built: the artifact's folder. store: of examined images; its fingerprints make a request a conditional one. It
    ends with the first change. fetcher: for tests.
    """
    told = _told(built)  # of a raw folder at a URL the digest has asked about each file already
    if not told:
        return False
    far = fetcher or Fetcher(raw, config.max_bytes, HttpsConfig(allowed_hosts=config.allowed_hosts))
    look = Looker(far, config, retry_failed=False)
    pool = ThreadPoolExecutor(THREADS)
    try:
        looks = {pool.submit(look, one): one.words for one in _references(told, image_store.open_store(store, config))}
        return any(_differs(told[looks[done]], done.result().outcome) for done in as_completed(looks))
    finally:
        pool.shutdown(cancel_futures=True)
        far.close()


def _told(built: Path) -> dict[str, Told]:
    """What the artifact says of each far reference."""
    table = pq.read_table(built / "items.parquet", columns=["image_uri", "reason", "bytes_sha256"])
    rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    return {uri: (reason, sha256) for uri, reason, sha256 in rows if uri is not None and is_far(uri)}


def _references(told: dict[str, Told], store: ImageStore) -> list[Reference]:
    known: dict[str, Outcome] = {}
    for number in {store.number(uri) for uri in told}:
        known |= store.known(number)
    return [Reference(uri, uri, known.get(uri)) for uri in told]


def _differs(told: Told, now: Outcome) -> bool:
    reason, sha256 = told
    if now.image_id is not None:
        return now.bytes_sha256 != sha256 or reason not in ("", catalogue.SHARED_BY_MANY)
    # One outage is as good as another: none of them is news worth a build.
    return now.reason != reason and not {now.reason, reason} <= catalogue.RETRYABLE
