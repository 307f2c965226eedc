"""What the words of a reference may mean, and which of their faults can be told from them alone."""

import base64
import time
import unicodedata

import pytest

from jobs.rules.items import OUTAGES, RETRYABLE, STATUS_OF
from jobs.rules.references import fault, likely_fault, other_paths, spellings, trimmed

PICTURE = base64.b64encode(bytes.fromhex("89504e470d0a1a0a") + bytes(90)).decode()
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "a/é.jpg") for form in ("NFC", "NFD"))

FAULTS = {  # of the words alone, wherever one looked
    "no_reference": [
        "nan",
        "NaN",
        "None",
        "N/A",
        "null",
        " NULL ",
        "<NA>",
        "undefined",
        "false",
        "[]",
        "['']",
        "[nan]",
        '""',
        "\\N",
    ],
    "inline_data": ["data:image/png;base64,AA==", "DATA:,x", "blob:https://cdn.test/1", " data:,", PICTURE],
    "several_references": [
        "https://a.test/1.jpg,https://a.test/2.jpg",
        "s3://b/1.jpg | s3://b/2.jpg",
        "https://a.test/1 //b",
    ],
    "other_machine": [
        "C:\\shop\\a.jpg",
        "c:/shop/a.jpg",
        "file:///C:/shop/a.jpg",
        "file://C:/a.jpg",
        "\\\\nas\\shop\\a.jpg",
    ],
    "scheme_missing": ["//cdn.test/a.jpg", "//cdn.test:8443/a.jpg", "//192.168.1.5/a.jpg"],
    "absolute_path": ["//images/a.jpg"],
}
NO_FAULT = [
    "a.jpg",
    "nan.jpg",
    "none/a.jpg",
    "/data/a.jpg",
    "data/a.jpg",
    "https://a.test/w_1,h_2/https://b.test/c.jpg",
    "C.jpg",
]

LIKELY = {  # of a path that leads nowhere
    "several_references": [
        "['a.jpg', 'b.jpg']",
        '["a.jpg"]',
        "{a.jpg,b.jpg}",
        "('a.jpg',)",
        "array(['a.jpg'], dtype=object)",
        "a|b",
        "a.jpg;b.jpg",
        "a.JPG, b/c.jpeg?v=1",
        "a.jpg b.png",
        "a.jpg\nb.jpg",
        "a.jpg,//cdn.test/b.jpg",
    ],
    "scheme_missing": [
        "cdn.test/a.jpg",
        "www.cdn.test:8443/a",
        "www.cdn.test",
        "10.0.0.1/a.jpg",
        "localhost:8000/a.jpg",
        "cdn.test\\a.jpg",
        "https//cdn.test/a.jpg",
        "https:/cdn.test/a.jpg",
        "https:\\\\cdn.test\\a.jpg",
        "HTTP;//cdn.test",
        "s3:bucket/a.jpg",
        "s3//bucket/a.jpg",
    ],
    "white_space": [" a.jpg", "a.jpg\n", "\u200ba.jpg", "\ufeffa.jpg", "\u00a0a.jpg", "'a.jpg'", "\u201ca.jpg\u201d"],
    "scheme_not_allowed": ["about:blank", "javascript:void(0)", "cid:1@cdn.test"],
    "backslashes": ["images\\a.jpg", "..\\a.jpg"],
}
NOT_LIKELY = [
    "s3/a.jpg",
    "a.jpg",
    "semi;colon,comma.jpg",
    "a b.jpg",
    "photo.v2/a.jpg",
    "x.9/a.jpg",
    "a,b",
    "[a] b.jpg",
    "$HOME/a.jpg",
    "é.jpg",
]


@pytest.mark.parametrize(("reason", "words"), [(reason, one) for reason, all_ in FAULTS.items() for one in all_])
def test_words_that_can_lead_nowhere_have_a_fault(reason, words):
    assert fault(words) == reason


@pytest.mark.parametrize("words", NO_FAULT)
def test_words_that_may_lead_somewhere_have_none(words):
    assert fault(words) is None


@pytest.mark.parametrize(("reason", "path"), [(reason, one) for reason, all_ in LIKELY.items() for one in all_])
def test_a_path_that_leads_nowhere_has_a_fault_that_can_be_seen(reason, path):
    assert likely_fault(path) == reason


@pytest.mark.parametrize("path", NOT_LIKELY)
def test_a_path_that_looks_like_one_has_no_likely_fault(path):
    assert likely_fault(path) is None


@pytest.mark.parametrize(
    ("path", "others"),
    [
        ("a.jpg", []),
        (" a.jpg\n", [("white_space", "a.jpg")]),
        ("a\u200bb.jpg", [("white_space", "ab.jpg")]),
        ("a\\b.jpg", [("backslashes", "a/b.jpg")]),
        ("a%20b.jpg", [("encoded", "a b.jpg")]),
        ("a&amp;b.jpg", [("encoded", "a&b.jpg")]),
        ("a+b.jpg", [("encoded", "a b.jpg")]),
        ("a.jpg;", [("several_references", "a.jpg")]),
        ("a.jpg?v=1", [("query_after_name", "a.jpg")]),
        ("a.jpg#big", [("query_after_name", "a.jpg")]),
        (
            "a%3F.jpg?v=1",
            [("query_after_name", "a%3F.jpg"), ("encoded", "a?.jpg?v=1"), ("encoded", "a?.jpg")],
        ),
        (" a\\b.jpg", [("white_space", "a\\b.jpg"), ("backslashes", "a/b.jpg")]),
    ],
)
def test_what_was_meant_comes_with_the_fault_that_it_would_be(path, others):
    assert list(other_paths(path)) == others


def test_a_path_has_its_composed_and_its_decomposed_form_each_once():
    assert list(spellings("a.jpg")) == ["a.jpg"]
    assert list(spellings(COMPOSED)) == [COMPOSED, DECOMPOSED]
    assert list(spellings(DECOMPOSED)) == [DECOMPOSED, COMPOSED]


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("S3://Bucket/A.jpg", "s3://Bucket/A.jpg"),
        (" HTTPS://cdn.test/a.jpg\u200b", "https://cdn.test/a.jpg"),
        ("FILE:/a.jpg", "file:///a.jpg"),
        ("file://a.jpg", "file://a.jpg"),
    ],
)
def test_an_address_is_read_whatever_the_case_of_its_scheme_and_whatever_stands_around_it(words, address):
    assert trimmed(words) == address


def test_no_fault_of_words_is_tried_again_or_keeps_an_old_picture():
    faults = {*FAULTS, *LIKELY, "encoded", "query_after_name"}
    assert faults <= set(STATUS_OF)
    assert faults.isdisjoint(RETRYABLE | OUTAGES)


@pytest.mark.parametrize(
    "words", [" " * 10**6 + "a", "a" + " " * 10**6 + "b", "a," * 10**6, "[" * 10**6, "a?" * 10**6, "a.b-" * 10**6]
)
def test_a_cell_of_a_million_characters_is_looked_at_in_no_time(words):
    begun = time.process_time()
    fault(words)
    likely_fault(words)
    list(other_paths(words))
    assert time.process_time() - begun < 5
