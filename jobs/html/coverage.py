"""The page that shows the coverage of a catalogue, from what jobs.images.coverage counts."""

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

from PIL import Image

from jobs.html import page
from jobs.rules.items import OK, SENTENCES, STATUS_OF, STATUSES

SHOWN_LINES: Final = 40  # of a table
SHOWN_REASONS: Final = 20  # categories, by reason
THUMBNAIL: Final = 96


def render(found: Mapping[str, Any], pngs: Mapping[str, bytes]) -> str:
    """The whole page. found: what coverage.json holds; pngs: image_id -> PNG."""
    by_status, total = found["by_status"], found["rows"]["accepted"]
    return page.render(
        "coverage.html.j2",
        **found,
        statuses=STATUSES,
        status_of=STATUS_OF,
        sentences=SENTENCES,
        usable=f"{100 * by_status[OK] / total:.1f}" if total else None,
        most=max(found["by_reason"].values(), default=1),
        thumbnails={image_id: _data_uri(png) for image_id, png in pngs.items()},
        tables={"Category": found["by_category"], "Source": found["by_source"]},
        shown=SHOWN_LINES,
        shown_reasons=SHOWN_REASONS,
    )


def _data_uri(png: bytes) -> str:
    with Image.open(BytesIO(png), formats=("PNG",)) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        stream = BytesIO()
        image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
