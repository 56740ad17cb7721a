"""Self-contained HTML pages: headings, tables and embedded images, by Jinja templates that escape all text."""

from base64 import b64encode
from collections.abc import Iterable, Sequence

from jinja2 import Environment
from markupsafe import Markup

from cellsignal.data.simulated import shown, titled

STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --quiet: #5f6771; --line: #dde1e6; --paper: #ffffff;
  --raw: #00568a; --assigned: #a84700; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --quiet: #a2abb5; --line: #3a4048;
  --paper: #16181b; --raw: #6cb8e6; --assigned: #f09a5c; --card: #202429; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; letter-spacing: -0.02em; }
h2 { margin: 2.8rem 0 0.6rem; font-size: 1.25rem; }
h3 { margin: 1.6rem 0 0.4rem; font-size: 1rem; }
p { margin: 0.4rem 0 0.8rem; max-width: 70ch; }
.quiet { color: var(--quiet); }
.numbers { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 1.4rem 0; }
.number { background: var(--card); border-radius: 10px; padding: 0.8rem 1.2rem; min-width: 11rem; }
.number b { display: block; font-size: 1.9rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.raw { color: var(--raw); } .assigned { color: var(--assigned); }
img { display: block; max-width: max(100%, 42rem); height: auto; margin: 0.8rem 0; padding: 0.6rem; background: #ffffff;
  border-radius: 8px; border: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.6rem 0; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.32rem 0.9rem 0.32rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--quiet); font-weight: 600; }
td.figure, th.figure { text-align: right; padding-left: 0.9rem; }
td { overflow-wrap: break-word; }
a { color: var(--raw); }
"""

TEMPLATES = Environment(autoescape=True, trim_blocks=True).from_string("""
{% macro page(title, style, parts) %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
{{ parts | join("\n") }}
</body>
</html>
{% endmacro %}
{% macro head(title, words, boxes=()) %}
<h1>{{ title }}</h1>
<p class="quiet">{{ words }}</p>
{% if boxes %}<div class="numbers">{{ boxes | join }}</div>{% endif %}
{% endmacro %}
{% macro section(title) %}
<section>
<h2>{{ title }}</h2>
{{ varargs | select | join("\n") }}
</section>
{%- endmacro %}
{% macro subsection(title) %}
<h3>{{ title }}</h3>
{{ varargs | select | join("\n") }}
{%- endmacro %}
{% macro paragraph(text, quiet=False) %}
<p{% if quiet %} class="quiet"{% endif %}>{{ text }}</p>
{%- endmacro %}
{% macro number(value, label, kind="") %}
<div class="number"><b class="{{ kind }}">{{ value }}</b>{{ label }}</div>
{%- endmacro %}
{% macro table(header, rows, columns) %}
<div class="wide"><table>
<thead><tr>{% for name in header %}<th class="{{ ' figure' if columns[loop.index0][1] }}">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for value in row %}{% set kind, numeric = columns[loop.index0] %}<td class="{{ kind }}{{ ' figure' if numeric }}">
{%- if value is float %}{{ '%.3f' % value }}{% elif value is not none %}{{ value }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{%- endmacro %}
{% macro image(data, alt) %}
<div class="wide"><img alt="{{ alt }}" src="data:image/png;base64,{{ data }}"></div>
{%- endmacro %}
{% macro links(targets) %}
<ul>{% for address, name in targets %}<li><a href="{{ address }}">{{ name }}</a></li>{% endfor %}</ul>
{%- endmacro %}
""").module

# Parts of a page, as (title, *parts), (text, quiet), (value, label, kind), (title, words, boxes) and (pairs of address and name).
section, subsection, paragraph = TEMPLATES.section, TEMPLATES.subsection, TEMPLATES.paragraph
number, head, links = TEMPLATES.number, TEMPLATES.head, TEMPLATES.links


def page(title: str, parts: Iterable[str]) -> str:
    """A complete page of such parts, all other text escaped; with a banner and a label in the title if the data are simulated."""
    return str(TEMPLATES.page(titled(title), Markup(STYLE), [*[banner()] * shown(), *parts]))


def banner() -> Markup:
    """The banner of a page of simulated data."""
    return Markup(
        '<div role="note" style="margin: 0 0 1.6rem; padding: 0.8rem 1.2rem; border-radius: 8px; border: 1px solid #c77700; '
        'border-left-width: 8px; background: #fff4dc; color: #4a2c00"><b>Simulated data.</b> A virtual microscope drew every '
        "image behind these figures: they show what each idea is worth there, and are no figures of the competition.</div>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence], *, kinds: Sequence[str] = ()) -> Markup:
    """A table; numbers are right-aligned with three decimals, None is empty.

    `kinds`: "raw" or "assigned" for each column that is coloured as such, else "".
    """
    cells = list(rows)
    numeric = [any(isinstance(row[column], float) for row in cells) for column in range(len(header))]
    return TEMPLATES.table(header, cells, list(zip([*kinds, *[""] * len(header)], numeric)))


def image(png: bytes, alt: str) -> Markup:
    """A PNG inside the page."""
    return TEMPLATES.image(b64encode(png).decode(), alt)
