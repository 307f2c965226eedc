"""Draw a query and what it found as one picture that a person can judge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

THUMB = 160  # pixels, the square that a picture is fitted into
PAD = 14
TEXT = 62  # three lines under a picture
CELL = THUMB + PAD
COLUMNS = 5
BACKGROUND = (255, 255, 255)
INK = (25, 25, 25)
FAINT = (110, 110, 110)
SAME = (20, 130, 60)  # the frame of a result that has the query's very image
LINE = (210, 210, 210)


@dataclass(frozen=True, slots=True)
class Cell:
    """One result as it is drawn."""

    picture: Image.Image
    rank: int
    score: float
    item_id: str
    title: str | None
    category: str | None
    same_image: bool


def draw(query: Image.Image, asked: str, cells: Sequence[Cell]) -> Image.Image:
    """The query at the left, the results beside it row by row, each with rank, cosine, id, title and category."""
    rows = max(1, math.ceil(len(cells) / COLUMNS))
    left = CELL + 3 * PAD
    width = left + min(COLUMNS, max(1, len(cells))) * CELL + PAD
    sheet = Image.new("RGB", (width, rows * (CELL + TEXT) + 2 * PAD), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    _place(sheet, pen, query, (PAD, PAD), ["query", asked, ""], frame=INK)
    pen.line([(left - 2 * PAD, PAD), (left - 2 * PAD, sheet.height - PAD)], fill=LINE)
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        corner = (left + column * CELL, PAD + row * (CELL + TEXT))
        words = [f"{cell.rank}.  {cell.score:.3f}  {cell.item_id}", cell.title or "", cell.category or ""]
        _place(sheet, pen, cell.picture, corner, words, frame=SAME if cell.same_image else LINE)
    if not cells:
        pen.text((left, PAD), "nothing found", fill=FAINT, font=_font(14))
    return sheet


def _place(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    picture: Image.Image,
    corner: tuple[int, int],
    words: Sequence[str],
    frame: tuple[int, int, int],
) -> None:
    x, y = corner
    fitted = _fitted(picture)
    sheet.paste(fitted, (x + (THUMB - fitted.width) // 2, y + (THUMB - fitted.height) // 2))
    thick = 3 if frame == SAME else 1
    pen.rectangle([(x - thick, y - thick), (x + THUMB + thick - 1, y + THUMB + thick - 1)], outline=frame, width=thick)
    for line, text in enumerate(words):
        font = _font(14 if line == 0 else 13)
        pen.text((x, y + THUMB + 6 + 18 * line), _cut(text, font), fill=INK if line == 0 else FAINT, font=font)


def _fitted(picture: Image.Image) -> Image.Image:
    factor = THUMB / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


@cache
def _font(size: int) -> FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow brings it: the same sheet on every machine


def _cut(text: str, font: FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= THUMB:
        return text
    while text and font.getlength(text + "…") > THUMB:
        text = text[:-1]
    return text + "…"
