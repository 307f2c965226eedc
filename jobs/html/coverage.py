"""The page that shows the coverage of a catalogue: a Jinja template for what jobs.images.coverage counts."""

from typing import Final

TEMPLATE: Final = """\
{% extends "page" %}
{% macro number(n) %}{{ "{:,}".format(n) }}{% endmacro %}
{% macro bar(counts, total) %}
<div class="bar" aria-hidden="true">{% for status in statuses if counts[status] %}<span class="{{ status }}"
 style="width:{{ "%.3f" | format(100 * counts[status] / total) }}%"
 title="{{ status }}: {{ number(counts[status]) }}"></span>{% endfor %}</div>
{% endmacro %}
{% macro picture(image_id, alt) %}
{% if thumbnails[image_id] %}<img src="{{ thumbnails[image_id] }}" alt="{{ alt }}" width="96" height="96">
{% else %}<span class="none">no picture kept</span>{% endif %}
{% endmacro %}
{% block title %}Image coverage{% endblock %}
{% block style %}
 td.text { text-align: left; }
 h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
 tbody th { max-width: 18rem; overflow: hidden; text-overflow: ellipsis; }
 td.chart { width: 40%; min-width: 8rem; }
 .bar { display: flex; height: .9rem; background: #f1f1f1; } .bar span { display: block; min-width: 1px; }
 .total .bar { height: 1.6rem; margin: .6rem 0; }
 .ok { background: #0072B2; } .missing { background: #E69F00; } .broken { background: #C44E00; }
 .placeholder { background: #777; } .refused { background: #8C5A9E; }
 .legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .4rem 0; }
 .legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; }
 .pictures { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; list-style: none; }
 .pictures li { width: 96px; font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere; }
 .pictures img, .none { width: 96px; height: 96px; display: block; background: #f1f1f1; }
 .none { display: grid; place-items: center; color: #555; text-align: center; }
 details { margin: .3rem 0; } summary { cursor: pointer; } summary .bar { display: inline-flex; width: 9rem;
   vertical-align: middle; margin: 0 .5rem; } code { font-size: .82rem; overflow-wrap: anywhere; }
 summary strong { display: inline-block; min-width: 3.6rem; text-align: right; font-variant-numeric: tabular-nums; }
 .groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 0 1.5rem; }
 @media (max-width: 40rem) { tbody th { max-width: 8rem; } td.chart { min-width: 6rem; } summary .bar { width: 4rem; } }
 details ul { margin: .3rem 0; padding-left: 1.4rem; } .note { color: #444; font-size: .9rem; }
{% endblock %}
{% block main %}
<h1>Image coverage</h1>
<p class="headline">{% if usable is none %}The catalogue holds no item.{% else %}{{ usable }} % of
{{ number(rows.accepted) }} items have a usable picture.{% endif %}</p>
<p>{{ number(rows.read) }} rows were read: {{ number(rows.accepted) }} accepted and {{ number(rows.rejected) }}
rejected. The usable pictures are {{ number(pictures.distinct) }} distinct ones;
{{ number(pictures.exact_duplicates) }} items show the very picture of another item
{%- if pictures.near_groups is defined %}, and {{ number(pictures.near_duplicates) }} one that is nearly the same
({{ number(pictures.near_groups) }} groups){% endif %}.</p>
{% if rows.accepted %}
<div class="total">{{ bar(by_status, rows.accepted) }}</div>
{% endif %}
<ul class="legend">
{% for status in statuses %}
<li><i class="{{ status }}"></i>{{ status }} {{ number(by_status[status]) }}</li>
{% endfor %}
</ul>

{% for title, table in tables.items() if table.lines %}
<h2>By {{ title | lower }}</h2>
<div class="wide" role="region" aria-label="Coverage by {{ title | lower }}" tabindex="0">
<table>
<thead><tr><th scope="col">{{ title }}</th><th scope="col">items</th><th scope="col">usable</th>
<th scope="col"><span class="note">share of each status</span></th></tr></thead>
<tbody>
{% for line in table.lines[:shown] %}
<tr><th scope="row" title="{{ line.name or '' }}">{{ line.name if line.name is not none else "(none)" }}</th>
<td>{{ number(line["items"]) }}</td><td>{{ "%.1f" | format(100 * (line.ok or 0) / line["items"]) }} %</td>
<td class="chart">{{ bar(line, line["items"]) }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% if table["values"] > shown %}
<p class="note">The {{ shown }} largest of {{ number(table["values"]) }}; more of them stand in coverage.json.</p>
{% endif %}
{% endfor %}

{% if by_reason %}
<h2>Why pictures cannot be used</h2>
{% for reason, count in by_reason.items() %}
<details>
<summary><strong>{{ number(count) }}</strong> <span class="bar"><span class="{{ status_of[reason] }}"
 style="width:{{ "%.3f" | format(100 * count / most) }}%"></span></span>{{ reason }}
<span class="note">({{ status_of[reason] }})</span></summary>
<p class="note">{{ sentences[reason] }}</p>
<ul>
{% for example in examples[reason] %}
<li>{% if example.image_id %}{{ picture(example.image_id, example.item_id) }}{% endif %}
{{ example.item_id }}: {% if example.image_uri is none %}names no image
{%- else %}<code>{{ example.image_uri }}</code>{% endif %}</li>
{% endfor %}
</ul>
</details>
{% endfor %}
{% endif %}

{% if reasons_by_category.lines %}
<h2>Why, by category</h2>
<div class="wide" role="region" aria-label="Reasons by category" tabindex="0">
<table>
<thead><tr><th scope="col">Category</th><th scope="col">not usable</th>
{% for reason in by_reason %}<th scope="col">{{ reason }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in reasons_by_category.lines[:shown_reasons] %}
<tr><th scope="row" title="{{ line.name or '' }}">{{ line.name if line.name is not none else "(none)" }}</th>
<td>{{ number(line["items"]) }}</td>
{% for reason in by_reason %}<td>{{ number(line[reason]) if line[reason] }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if reasons_by_category["values"] > shown_reasons %}
<p class="note">The {{ shown_reasons }} categories of {{ number(reasons_by_category["values"]) }} that lack the most;
more of them stand in coverage.json.</p>
{% endif %}
{% endif %}

{% if stale_by_reason %}
<h2>Pictures kept from before</h2>
<p class="note">They could not be looked at again, and count as usable as they were.</p>
<ul>
{% for reason, count in stale_by_reason.items() %}
<li>{{ number(count) }} {{ reason }}: {{ sentences[reason] }}</li>
{% endfor %}
</ul>
{% endif %}

{% if rejected_by_reason %}
<h2>Rows that were rejected</h2>
{% for reason, count in rejected_by_reason.items() %}
<details>
<summary><strong>{{ number(count) }}</strong> {{ reason }}</summary>
<ul>
{% for row in rejected_examples[reason] %}
<li><code>{{ row }}</code></li>
{% endfor %}
</ul>
</details>
{% endfor %}
{% endif %}

{% if placeholders %}
<h2>“No image” pictures</h2>
<p class="note">One picture shown by many items of unrelated categories tells nothing about any of them.</p>
<ul class="pictures">
{% for one in placeholders %}
<li>{{ picture(one.image_id, "placeholder") }}{{ number(one["items"]) }} items, {{ number(one.categories) }}
categories</li>
{% endfor %}
</ul>
{% endif %}

{% if near_duplicate_groups %}
<h2>Pictures that are nearly the same</h2>
{% if pictures.near_not_compared %}
<p class="note">{{ number(pictures.near_not_compared) }} pairs of pictures with crowded hashes were not compared: some
groups may be larger.</p>
{% endif %}
{% if pictures.near_groups > near_duplicate_groups | length %}
<p class="note">The {{ near_duplicate_groups | length }} largest of {{ number(pictures.near_groups) }} groups.</p>
{% endif %}
<div class="groups">
{% for group in near_duplicate_groups %}
<section>
<h3>{{ number(group["items"]) }} items, {{ number(group.pictures) }} pictures, first {{ group.first_item_id }}</h3>
<ul class="pictures">
{% for one in group.examples %}
<li>{{ picture(one.image_id, one.item_id) }}{{ one.item_id }}{% if one["items"] > 1 %} and
{{ number(one["items"] - 1) }} more{% endif %}</li>
{% endfor %}
</ul>
</section>
{% endfor %}
</div>
{% endif %}

{% if gallery %}
<h2>Some usable pictures</h2>
<ul class="pictures">
{% for one in gallery %}
<li>{{ picture(one.image_id, one.title or one.item_id) }}{{ one.title or one.item_id }}</li>
{% endfor %}
</ul>
{% endif %}

{% if pictures.modes is defined %}
<h2>What the pictures are</h2>
<p>Width {{ pictures.width.smallest }} to {{ pictures.width.largest }} pixels, half of them at most
{{ pictures.width.median }}; height {{ pictures.height.smallest }} to {{ pictures.height.largest }}, half of them at
most {{ pictures.height.median }}. {{ number(pictures.animated) }} are animated or have several pages. Stored as
{% for mode, count in pictures.modes.items() %}{{ mode }} ({{ number(count) }}){{ ", " if not loop.last }}{% endfor %}.
</p>
{% endif %}
{% endblock %}
"""
