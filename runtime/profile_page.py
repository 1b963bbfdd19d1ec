"""The parts that the HTML page of a profile is made of: tables, bars, legends, cells, and the page around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edge4d.runtime.profile import Layer
from edge4d.runtime.profile_pictures import number, text

UNKNOWN = "&ndash;"
DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "int8"}  # to the colours of the precisions


def page(title: str, head: str, sections: Mapping[str, str]) -> str:
    """The whole page. `head` and the sections, by their titles, are HTML; `title` is plain text."""
    links = " ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>\n{part}</section>\n' for name, part in sections.items()
    )
    return _PAGE.format(title=text(title), style=_STYLE, head=head, links=links, body=body)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], kinds: str) -> str:
    """A table of cells that are HTML already; `kinds` are the classes of the first columns, the others are numbers."""
    given = kinds.split()
    classes = [*given, *["number"] * (len(columns) - len(given))]
    head = "".join(f'<th class="{kind}">{column}</th>' for kind, column in zip(classes, columns))
    body = "".join(
        f"<tr>{''.join(f'<td class={kind!r}>{cell}</td>' for kind, cell in zip(classes, row))}</tr>\n" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def bar(value: float, longest: float, colour: str) -> str:
    return f'<i class="bar {colour}" style="width:{100 * value / (longest or 1.0):.1f}%"></i>'


def legend(colours: Mapping[str, str]) -> str:
    items = "".join(f'<span><i class="{colour}"></i>{text(name)}</span> ' for name, colour in colours.items())
    return f'<p class="legend">{items}</p>\n'


def note(sentences: str) -> str:
    return f'<p class="note">{sentences}</p>\n'


def missing(reason: str) -> str:
    return f'<p class="missing">{reason}</p>\n'


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def name(value: str) -> str:
    """A long name of a layer, which may break into lines at its own joints."""
    return text(value).replace("/", "/<wbr>").replace("_", "_<wbr>")


def percent(part: float, whole: float) -> str:
    if not whole:
        return UNKNOWN
    return "&lt;1 %" if 0 < part / whole < 0.005 else f"{100 * part / whole:.0f} %"


def speed(old: float, new: float) -> str:
    return f"{number(old / new)}&times;" if old and new else UNKNOWN


def ratio(old: float, new: float) -> str:
    return f"{number(new / old)}&times;" if old else UNKNOWN


def megabytes(size: int) -> str:
    return number(size / 1e6) if size else ""


def precision_colour(precision: str) -> str:
    return precision if precision in DTYPES.values() else "other"


def dtype_colour(layer: Layer) -> str:
    return DTYPES.get(layer.dtype, "other")


def enumerated(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
{head}<nav>{links}</nav>
</header>
<main>
{body}</main>
</body>
</html>
"""

# Colours are of medium lightness, so that the same dark ink is readable on each of them, on white and on black pages.
_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #16181d; --soft: #5c6068; --line: #dddfe3; --stage: #c9ccd2; }
@media (prefers-color-scheme: dark) {
  :root { --page: #17181b; --ink: #ececec; --soft: #a4a8b0; --line: #35383e; --stage: #8b9099; }
}
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
body { max-width: 1080px; margin: 0 auto; padding: 24px; background: var(--page); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0; } h1 small { color: var(--soft); font-weight: normal; }
h2 { font-size: 18px; margin: 40px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }
h3 { font-size: 14px; margin: 18px 0 6px; }
.result { font-size: 18px; margin: 10px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 1px 14px; margin: 14px 0; font-size: 13px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
nav a { color: inherit; margin-right: 14px; font-size: 13px; }
.note, .missing { color: var(--soft); font-size: 13px; max-width: 80ch; }
.scroll { overflow-x: auto; margin: 10px 0; }
.roofs { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 0 28px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: normal; vertical-align: bottom; }
th, td { text-align: right; padding: 3px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
.left, .name, .wide { text-align: left; } .wide { width: 28%; }
.name { min-width: 180px; white-space: normal; overflow-wrap: anywhere; }
small { color: var(--soft); }
.bar { display: block; height: 12px; min-width: 1px; border-radius: 2px; }
details { margin: 12px 0 18px; } summary { cursor: pointer; margin-bottom: 4px; }
.legend { font-size: 13px; margin: 6px 0; } .legend span { margin-right: 14px; white-space: nowrap; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px; }
svg { display: block; }
svg.picture { width: 100%; margin: 8px 0; } svg.picture[viewBox^="0 0 560"] { max-width: 640px; }
svg.spread { width: 140px; height: 22px; }
svg text { font-size: 11px; fill: var(--ink); } svg text.inside { fill: #111; pointer-events: none; }
.grid { stroke: var(--line); } .line { stroke: var(--ink); stroke-width: 1.2; }
circle { fill-opacity: 0.65; stroke: var(--page); }
.fp32, .k0, .now, .by-arithmetic { fill: #4a93e3; background: #4a93e3; }
.fp16, .k1 { fill: #1fae7c; background: #1fae7c; }
.int8, .k2, .by-memory { fill: #e8833f; background: #e8833f; }
.k3, .weights { fill: #978ceb; background: #978ceb; } .k4, .activations { fill: #d9a514; background: #d9a514; }
.k5 { fill: #e0709b; background: #e0709b; } .k6 { fill: #7fae3d; background: #7fae3d; }
.other, .before { fill: #9b9ea4; background: #9b9ea4; } .stage { fill: var(--stage); background: var(--stage); }
@media print {
  :root { --page: #fff; --ink: #000; --soft: #444; --line: #ccc; --stage: #c9ccd2; }
  body { padding: 0; font-size: 10px; } nav { display: none; } .result { font-size: 15px; }
  dl, table, .note, .missing, .legend { font-size: inherit; } th, td { padding: 2px 5px; } th { white-space: normal; }
  .scroll { overflow: visible; } .roofs { grid-template-columns: 1fr 1fr; } h2 { margin-top: 24px; }
  tr, svg, details { break-inside: avoid; } h2, h3, summary { break-after: avoid; }
}
"""
