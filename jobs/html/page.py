"""The frame of every page that courier writes: one self-contained HTML file, one style."""

from typing import Any, Final

import jinja2

FRAME: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{% block title %}{% endblock %}</title>
<style>
 body { font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; color: #1c1c1c; background: #fff; max-width: 76rem;
        margin: 2rem auto; padding: 0 1.25rem; }
 h1 { font-size: 1.5rem; line-height: 1.3; margin-bottom: .4rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
 .headline { font-size: 1.1rem; border-left: 4px solid #0072B2; padding-left: .9rem; }
 .wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; width: 100%; }
 caption { text-align: left; color: #444; padding-bottom: .4rem; }
 th, td { padding: .32rem .52rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap;
          font-variant-numeric: tabular-nums; }
 th:first-child { text-align: left; } thead th { border-bottom: 2px solid #555; } tbody th { font-weight: normal; }
 figure { margin: 1rem 0; } figcaption { color: #333; font-size: .92rem; } svg { max-width: 100%; height: auto; }
{% block style %}{% endblock %}
</style>
</head>
<body>
<main>
{% block main %}{% endblock %}
</main>
</body>
</html>
"""


def render(template: str, **values: Any) -> str:
    """The whole page. template: extends "page" with the blocks title, style (more of it) and main."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": FRAME}), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(values)
