"""Every page is a template in the one frame: what it names is given, and what it shows of the data is text."""

import re
from pathlib import Path

import jinja2
import pytest

from jobs.html import page

FOLDER = Path(page.__file__).parent
PAGES = sorted(path.name for path in FOLDER.glob("*.html.j2") if path.name != "page.html.j2")


@pytest.mark.parametrize("template", PAGES)
def test_a_page_extends_the_frame_and_fills_its_blocks(template: str) -> None:
    text = (FOLDER / template).read_text("utf-8")
    assert text.startswith('{% extends "page.html.j2" %}\n')
    assert set(re.findall(r"{% block (\w+) %}", text)) == {"title", "style", "main"}


@pytest.mark.parametrize("template", PAGES)
def test_a_value_that_a_page_names_and_nobody_gives_is_an_error(template: str) -> None:
    with pytest.raises(jinja2.UndefinedError):
        page.render(template)


def test_markup_in_the_data_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = '{% extends "page.html.j2" %}{% block main %}{{ name }}{% endblock %}'
    loader = jinja2.ChoiceLoader([jinja2.DictLoader({"one.html.j2": shown}), page._environment().loader])
    monkeypatch.setattr(page._environment(), "loader", loader)
    assert "&lt;script&gt;" in page.render("one.html.j2", name="<script>")
