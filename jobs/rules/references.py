"""What the words of an image reference may mean, and which fault of theirs leads nowhere; jobs.images follows them.

By the words alone: nothing is looked for here. Faults are reasons of jobs.rules.items.STATUS_OF.
"""

import re
import unicodedata
from collections.abc import Iterator
from html import unescape
from typing import Final
from urllib.parse import unquote, unquote_plus

NO_REFERENCE: Final = "no_reference"
INLINE_DATA: Final = "inline_data"
SEVERAL_REFERENCES: Final = "several_references"
SCHEME_MISSING: Final = "scheme_missing"
ABSOLUTE_PATH: Final = "absolute_path"
OTHER_MACHINE: Final = "other_machine"
WHITE_SPACE: Final = "white_space"
BACKSLASHES: Final = "backslashes"
ENCODED: Final = "encoded"
QUERY_AFTER_NAME: Final = "query_after_name"
SCHEME_NOT_ALLOWED: Final = "scheme_not_allowed"

# In small letters; what pandas takes for no value is among them, and what a spreadsheet could not compute.
NONE: Final = frozenset(
    ("", "?", "-", "--", "nan", "-nan", "nat", "na", "n/a", "n.a.", "#n/a", "#n/a n/a", "#na", "<na>", "1.#ind")
    + ("-1.#ind", "1.#qnan", "-1.#qnan", "none", "null", "<null>", "nil", "undefined", "false", "\\n")
    + ("#ref!", "#value!", "#name?", "#null!", "#num!", "#div/0!")
)
# Soft hyphens, spaces of no width, marks of direction and of byte order.
UNSEEN: Final = "\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\ufeff"
AROUND: Final = UNSEEN + "".join(chr(n) for n in range(0x3001) if chr(n).isspace())
QUOTES: Final = ('""', "''", "``", "\u201c\u201d", "\u2018\u2019")
BRACKETS: Final = ("[]", "()", "{}")
PICTURE: Final = r"\.(?:jpe?g|jfif|png|gif|webp|avif|bmp|tiff?|heic|svg|ico|tga|jp2|qoi)(?:\?\S*)?"

LOOKED: Final = 4096  # characters that tell; no path is longer

SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_UNSEEN = str.maketrans("", "", UNSEEN)
_ONE_SLASH = re.compile(r"file:/(?!/)", re.IGNORECASE)  # RFC 8089 allows it
_OF_A_PAGE = re.compile(r"(?:about|javascript|cid|mailto|tel|urn):", re.IGNORECASE)
_DATA = re.compile(r"(?:data|blob):", re.IGNORECASE)
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/=\s]{64,}")  # PNG, JPEG, GIF, WebP
_DRIVE = re.compile(r"(?:file:[/\\]*)?[A-Za-z][:|](?:[/\\]|\Z)|(?:file:)?\\\\", re.IGNORECASE)
_NEXT_ADDRESS = re.compile(r"[|;,\s]\s*[\"']?(?:[A-Za-z][A-Za-z0-9+.-]*:)?//")
_MISSPELT = re.compile(r"https?[:;/\\]|(?:s3|gs|file)(?:[:;]|//)", re.IGNORECASE)
# A name with a dot and a last label of letters, four numbers, or any name with a port; a path follows, if not to www.
_HOST = re.compile(
    r"www\.[\w.-]+(?:/|\Z)|(?:(?:[\w-]+\.)+[^\W\d_]{2,}(?::\d+)?|\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?|[\w-]+:\d{2,5})/"
)


def trimmed(words: str) -> str:
    """The words without what stands around them unseen, and without quotes; the scheme in small letters."""
    bare = words.strip(AROUND)
    if len(bare) > 1 and bare[0] + bare[-1] in QUOTES:
        bare = bare[1:-1].strip(AROUND)
    bare = _ONE_SLASH.sub("file:///", bare, count=1) if _ONE_SLASH.match(bare) else bare
    found = SCHEME.match(bare)
    return bare if found is None else found[1].lower() + bare[found.end(1) :]


def spellings(path: str) -> Iterator[str]:
    """The path as it is written, then with its letters composed and decomposed (Unicode's NFC and NFD), each once.

    They are the same text, of which some file systems keep the one and some the other form.
    """
    yield path
    others = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    yield from (one for one in dict.fromkeys(others) if one != path)


def other_paths(path: str) -> Iterator[tuple[str, str]]:
    """(fault, what was meant if that is the fault) of a path that leads nowhere; the first that leads on tells it."""
    bare = trimmed(path)
    seen = bare.translate(_UNSEEN)
    slashed = seen.replace("\\", "/")
    name = re.split("[?#]", slashed, maxsplit=1)[0]
    meant = [(WHITE_SPACE, bare), (WHITE_SPACE, seen), (BACKSLASHES, slashed), (QUERY_AFTER_NAME, name)]
    meant += [(SEVERAL_REFERENCES, slashed.strip(",;|" + AROUND)), (ENCODED, unescape(slashed))]
    meant += [(ENCODED, decoded(one)) for one in (slashed, name) for decoded in (unquote, unquote_plus)]
    tried = {path, ""}
    for fault, other in meant:
        if other not in tried:
            tried.add(other)
            yield fault, other


def fault(words: str) -> str | None:
    """Why the words can lead nowhere, wherever one looked; None where they may."""
    bare = trimmed(words)[:LOOKED]
    if bare.strip("[](){}'\" ").lower() in NONE:
        return NO_REFERENCE
    if _DATA.match(bare) or _BASE64.fullmatch(bare):
        return INLINE_DATA
    if SCHEME.match(bare) and _NEXT_ADDRESS.search(bare):
        return SEVERAL_REFERENCES
    if _DRIVE.match(bare):
        return OTHER_MACHINE
    if bare.startswith("//"):  # of a browser's page, whose scheme is meant; or a path with a slash too many
        return SCHEME_MISSING if _HOST.match(bare[2:]) else ABSOLUTE_PATH
    return None


def likely_fault(path: str) -> str | None:
    """The fault of a path that leads nowhere, by its looks; None where it looks like the path of a picture."""
    bare = trimmed(path)
    if _MISSPELT.match(bare):
        return SCHEME_MISSING
    if (bare.removeprefix("array")[:1] + bare[-1:] in BRACKETS) or _are_several(bare[:LOOKED]):
        return SEVERAL_REFERENCES
    if _HOST.match(bare.replace("\\", "/")):
        return SCHEME_MISSING
    if _OF_A_PAGE.match(bare):
        return SCHEME_NOT_ALLOWED
    if bare != path:
        return WHITE_SPACE
    return BACKSLASHES if "\\" in path else None


def _are_several(bare: str) -> bool:
    """Nobody has a bar or a line break in a name; of what other marks part, each part must end as pictures do."""
    if re.search(r"[|\n\r\t]", bare) or _NEXT_ADDRESS.search(bare):
        return True
    return any(
        len(parts) > 1 and all(re.search(PICTURE + r"\Z", part, re.IGNORECASE) for part in parts)
        for mark in (r";\s*", r",\s*", r"\s+")
        for parts in [re.split(mark, bare)]
    )
