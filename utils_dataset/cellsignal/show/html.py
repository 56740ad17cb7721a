"""Self-contained HTML pages: headings, tables and embedded images."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

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
img { display: block; max-width: 100%; height: auto; margin: 0.8rem 0; padding: 0.6rem; background: #ffffff;
  border-radius: 8px; border: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.6rem 0; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.32rem 0.9rem 0.32rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--quiet); font-weight: 600; }
td.figure, th.figure { text-align: right; padding-left: 0.9rem; }
td { overflow-wrap: anywhere; }
a { color: var(--raw); }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A complete page, with a banner and a label in the title if the data are simulated."""
    body = "\n".join([*[banner()] * shown(), *parts])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(titled(title))}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def banner() -> str:
    """The banner of a page of simulated data."""
    return (
        '<div role="note" style="margin: 0 0 1.6rem; padding: 0.8rem 1.2rem; border-radius: 8px; border: 1px solid #c77700; '
        'border-left-width: 8px; background: #fff4dc; color: #4a2c00"><b>Simulated data.</b> A virtual microscope drew every '
        "image behind these figures: they show what each idea is worth there, and are no figures of the competition.</div>"
    )


def section(title: str, *parts: str) -> str:
    """A section with a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, *, quiet: bool = False) -> str:
    """A paragraph of plain text."""
    kind = ' class="quiet"' if quiet else ""
    return f"<p{kind}>{escape(text)}</p>"


def number(value: str, label: str, *, kind: str = "") -> str:
    """One key figure with its label below it."""
    return f'<div class="number"><b class="{kind}">{escape(value)}</b>{escape(label)}</div>'


def numbers(boxes: Iterable[str]) -> str:
    """Key figures in a row."""
    return f'<div class="numbers">{"".join(boxes)}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence], *, kinds: Sequence[str] = ()) -> str:
    """A table; numbers are right-aligned with three decimals, None is empty.

    `kinds`: "raw" or "assigned" for each column that is coloured as such, else "".
    """
    kinds = [*kinds, *[""] * len(header)]
    cells = list(rows)
    numeric = [any(isinstance(row[c], float) for row in cells) for c in range(len(header))]
    head = "".join(_cell("th", text, kind="", numeric=f) for text, f in zip(header, numeric))
    lines = [
        "".join(_cell("td", value, kind=k, numeric=f) for value, k, f in zip(row, kinds, numeric))
        for row in cells
    ]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def _cell(tag: str, value: object, *, kind: str, numeric: bool) -> str:
    text = "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
    return f'<{tag} class="{kind}{" figure" if numeric else ""}">{escape(text)}</{tag}>'


def image(png: bytes, alt: str) -> str:
    """A PNG inside the page."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{b64encode(png).decode()}">'


def links(targets: Iterable[tuple[str, str]]) -> str:
    """A list of (address relative to the page, name)."""
    rows = "".join(f'<li><a href="{escape(address)}">{escape(name)}</a></li>' for address, name in targets)
    return f"<ul>{rows}</ul>"
