"""The frame of every page that courier writes, page.html.j2: one self-contained HTML file, one style."""

from functools import cache
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """The whole page. template: a file beside this one that extends page.html.j2; each value that it names is given."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.html", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
