"""Find the items that look like an item or like a picture: `courier search` and the answer to POST /search."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.additions import AddedItems
from model.courier.data.images import MAX_BYTES, decode, pixel_hash
from model.courier.data.stored_images import load_images
from model.errors import CourierError
from model.vector_index import VectorIndex
from serving import contact_sheet
from serving.additions import additions_of, read_additions
from serving.release import OpenRelease, ReleasedEncoder, open_release
from serving.schemas import Found, SearchAnswer
from serving.settings import read_settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class UnknownItem(CourierError):
    """No item of the catalogue has this id."""


class NoUsableImage(CourierError):
    """The item is known, but there is no image of it that could be searched with."""


class BadQuestion(CourierError):
    """The command line asks for what cannot be answered; the message says what to change."""


class ImageEncoder(Protocol):
    """Turns an RGB image into a unit vector (D,) float32 of the release's space."""

    def embed(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """The vector of one image."""


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """The plain columns of an item that an answer shows."""

    title: str | None
    category: str | None
    image_uri: str | None
    image_id: str | None
    duplicate_of: str | None
    status: str


@dataclass(frozen=True, slots=True)
class Hit:
    """An item found: its cosine with the query, and whether it has the query's very image."""

    item_id: str
    score: float
    same_image: bool
    item: CatalogueItem


@dataclass(frozen=True, slots=True)
class Added:
    """Items that were added since the release: an index of their own, so that the release's is never copied.

    pictures: image_id -> a PNG of it, for they lie in no images artifact.
    """

    index: VectorIndex
    items: Mapping[str, CatalogueItem]
    pictures: Mapping[str, bytes]


@dataclass(slots=True)
class VisualSearch:
    """The look-alikes of items and of images, out of one release's index and what was added since."""

    index: VectorIndex
    items: Mapping[str, CatalogueItem]
    encoder: ImageEncoder
    added: Added | None = None

    def __len__(self) -> int:
        """How many items can be found."""
        return len(self.index) + (len(self.added.index) if self.added else 0)

    def item(self, item_id: str) -> CatalogueItem | None:
        """What is known of an item; None where there is none of this id."""
        return (self.added.items.get(item_id) if self.added else None) or self.items.get(item_id)

    def with_added(self, added: AddedItems) -> "VisualSearch":
        """This search with what was added since the release. Items that its index holds are the release's own."""
        ids = added.table["item_id"].to_pylist()
        new = [row for row, item_id in enumerate(ids) if item_id not in self.index]
        if not new:
            return replace(self, added=None)
        columns = added.table.take(pa.array(new)).to_pydict()
        names = ("item_id", "title", "category", "image_uri", "image_id")
        items = {
            item_id: CatalogueItem(title, category, uri, image_id, duplicate_of=None, status="ok")
            for item_id, title, category, uri, image_id in zip(*(columns[name] for name in names), strict=True)
        }
        index = VectorIndex.build(added.vectors[new], list(items), kind="flat")
        pictures = dict(zip(columns["image_id"], columns["image"], strict=True))
        return replace(self, added=Added(index, items, pictures))

    def by_item(self, item_id: str, k: int) -> list[Hit]:
        """The k items nearest to an item, which is itself left out; its duplicates first. All others where k is larger.

        Raises UnknownItem, NoUsableImage.
        """
        item = self.item(item_id)
        if item is None:
            raise UnknownItem(f"no item '{item_id}' in the catalogue")
        held = next((one for one in self._indexes() if item_id in one), None)
        if held is None:
            raise NoUsableImage(f"item '{item_id}' has no usable image ({item.status}): search with a picture instead")
        hits = self._nearest(held.vector(item_id), k + 1, item.image_id)
        return [hit for hit in hits if hit.item_id != item_id][:k]

    def by_image(self, data: bytes, k: int) -> list[Hit]:
        """The k items nearest to an encoded image; those with the very same pixels first. Raises ImageRefused."""
        image = decode(data)
        return self._nearest(self.encoder.embed(image), k, pixel_hash(image))

    def _nearest(self, vector: npt.NDArray[np.float32], k: int, image_id: str | None) -> list[Hit]:
        hits = []
        for index in self._indexes():
            (ids,), (scores,) = index.search(vector[None, :], k)
            hits += [self._hit(item_id, float(score), image_id) for item_id, score in zip(ids, scores, strict=True)]
        # Stable: it only lifts the same image above another one that the encoder cannot tell from it.
        return sorted(hits, key=lambda hit: (-hit.score, not hit.same_image))[:k]

    def _indexes(self) -> list[VectorIndex]:
        return [self.index] + ([self.added.index] if self.added else [])

    def _hit(self, item_id: str, score: float, image_id: str | None) -> Hit:
        item = self.item(item_id)
        assert item is not None  # every item of an index is in the catalogue
        return Hit(item_id, score, item.image_id == image_id, item)


def load_search(opened: OpenRelease) -> VisualSearch:
    """The search of a release; its encoder is loaded when the first image is asked for."""
    return VisualSearch(
        VectorIndex.load(opened.folders["index"]), _read_items(opened.folders["images"]), ReleasedEncoder(opened)
    )


def _read_items(images: Path) -> dict[str, CatalogueItem]:
    columns = ["title", "category", "image_uri", "image_id", "duplicate_of", "status"]
    table = pq.read_table(images / "items.parquet", columns=["item_id", *columns])
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return {item_id: CatalogueItem(*row) for item_id, row in zip(table["item_id"].to_pylist(), rows, strict=True)}


def answer_of(hits: Sequence[Hit], release_id: str) -> SearchAnswer:
    """The hits in the form that goes out."""
    return SearchAnswer(results=[_found(hit) for hit in hits], release=release_id)


def _found(hit: Hit) -> Found:
    shown = asdict(hit.item)
    del shown["image_id"], shown["status"]
    return Found(item_id=hit.item_id, score=hit.score, same_image=hit.same_image, **shown)


# --- command line ---------------------------------------------------------------------------------------------------


@app.command()
def search(
    workspace: Annotated[Path | None, typer.Option(help="the folder that holds the release")] = None,
    item: Annotated[str | None, typer.Option(help="look-alikes of this item, which is itself left out")] = None,
    image: Annotated[Path | None, typer.Option(help="look-alikes of the picture in this file")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="how many; all there are where there are fewer")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    sheet: Annotated[Path | None, typer.Option(help="also draw the query and the results into this PNG file")] = None,
) -> None:
    """Items that look like an item or like a picture, best first."""
    if (item is None) == (image is None):
        raise BadQuestion("search by --item ID or by --image FILE, one of the two")
    settings = read_settings(workspace=workspace)
    opened = open_release(settings.workspace, settings.releases, settings.artifacts)
    since = additions_of(opened, settings.releases)
    found = load_search(opened).with_added(
        read_additions(since, opened.space_id, settings.workspace, settings.artifacts)
    )
    data = _read_image(image) if image else b""
    hits = found.by_item(item, k) if item is not None else found.by_image(data, k)
    asked = f"item {item}" if item is not None else str(image)
    if sheet is not None:
        shown = found.item(item) if item is not None else None
        [query] = _pictures_of(opened, found, [str(shown.image_id)]) if shown else [decode(data)]
        _draw(opened, found, asked, query, hits, sheet)
    if as_json:
        print(answer_of(hits, opened.release_id).model_dump_json(indent=1, ensure_ascii=True))
    else:
        _print_table(asked, hits, opened.release_id)


def _read_image(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadQuestion(f"{path} has {size} bytes, more than the {MAX_BYTES} that an image may have")
        return path.read_bytes()
    except OSError as error:
        raise BadQuestion(f"{path} cannot be read: {error.strerror}") from None


def _pictures_of(opened: OpenRelease, search: VisualSearch, image_ids: Sequence[str]) -> list[Image.Image]:
    """The pictures of items that are found, in their order."""
    added = search.added.pictures if search.added else {}
    released = [image_id for image_id in image_ids if image_id not in added]
    pictures = dict(zip(released, load_images(opened.folders["images"], released)[1], strict=True)) if released else {}
    return [decode(added[one]) if one in added else Image.fromarray(pictures[one]) for one in image_ids]


def _draw(
    opened: OpenRelease, search: VisualSearch, asked: str, query: Image.Image, hits: Sequence[Hit], path: Path
) -> None:
    pictures = _pictures_of(opened, search, [str(hit.item.image_id) for hit in hits])
    cells = [
        contact_sheet.Cell(picture, rank, hit.score, hit.item_id, hit.item.title, hit.item.category, hit.same_image)
        for rank, (hit, picture) in enumerate(zip(hits, pictures, strict=True), start=1)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet.draw(query, asked, cells).save(path, "PNG")
    except OSError as error:
        raise BadQuestion(f"the sheet cannot be written to {path}: {error.strerror}") from None


def _print_table(asked: str, hits: Sequence[Hit], release_id: str) -> None:
    table = Table(
        "", "item", "cosine", "title", "category", "image", title=escape(f"looks like {asked}"), caption=release_id
    )
    for rank, hit in enumerate(hits, start=1):
        note = "[green]the same[/green]" if hit.same_image else ""
        words = [escape(text or "") for text in (hit.item.title, hit.item.category)]
        table.add_row(str(rank), escape(hit.item_id), f"{hit.score:.4f}", *words, note)
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """`courier search`; returns on success, so that another verb may follow in the same process."""
    try:
        app(args=list(argv) if argv is not None else None, prog_name="courier search")
    except SystemExit as end:
        if end.code:
            raise
