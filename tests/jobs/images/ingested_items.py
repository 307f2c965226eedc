"""What the images job reads: a raw folder's items once they are ingested."""

from pathlib import Path

from jobs.config import IngestConfig
from jobs.raw.ingest import read_tables


def ingested(raw: Path) -> Path:
    """The ingest artifact of a raw folder, made anew."""
    out = raw.parent / f"{raw.name}-ingested"
    read_tables(raw=raw, raw_digest="", out=out, config=IngestConfig(), threads=1)
    return out
