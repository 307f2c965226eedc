"""What a reference gave: the one row that the workers and the store of examined images share."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a reference gave when it was last opened; the facts are None where no image could be decoded.

    image_id and phash are those of a picture that can be used: a blank one has none.
    """

    uri: str  # absolute: a path relative to a raw folder stands with its folder
    fingerprint: str | None = None  # of its bytes; None or empty where only reading tells whether they changed
    reason: str = ""  # a code of jobs.rules.items.STATUS_OF; "" for a usable image
    bytes_sha256: str | None = None
    image_id: str | None = None
    phash: str | None = None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    frames: int | None = None
    stale: str | None = None  # of catalogue.OUTAGES: why it gave nothing now; the rest is what it gave before
