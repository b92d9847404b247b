"""The look of the report: one style sheet, and the few elements that the page is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape as escape

PALETTE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #ffffff; --ink: #1b1f24; --muted: #646c76; --line: #dfe2e6;
  --accent: #2563a8; --second: #b4511a;
  --third: #6b4fa0; --fourth: #2f7d78; --fifth: #a8456f; --sixth: #8a7a1f; --good: #1a7f4b;
  --good-soft: #e5f4eb; --bad: #b3261e; --bad-soft: #fbe9e7; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1c2024; --ink: #e8eaed; --muted: #9aa3ad;
  --line: #33393f; --accent: #7ab3ee; --second: #f0a06a;
  --third: #b59ce6; --fourth: #74c4bd; --fifth: #e58bb1; --sixth: #d3c25c; --good: #6fce9b;
  --good-soft: #16301f; --bad: #ff8f86;
  --bad-soft: #3a1c1a; } }
"""
"""The colours by name, light and dark; a picture on its own takes them along."""

STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 3rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { margin: 0; font-size: 1.5rem; font-weight: 650; letter-spacing: -0.01em; }
h2 { margin: 0 0 0.6rem; font-size: 0.95rem; font-weight: 650; }
p { margin: 0.3rem 0; }
.muted, .note { color: var(--muted); }
.note { font-size: 0.82rem; }
.row { display: grid; gap: 1rem; margin-top: 1rem; }
.cards { grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.halves { grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)); }
.thirds { grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
.card { padding: 1rem 1.2rem; min-width: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 0.6rem; }
.figure { font-size: 1.9rem; font-weight: 650; line-height: 1.2; letter-spacing: -0.02em; }
.figure small { font-size: 0.95rem; font-weight: 500; letter-spacing: 0; color: var(--muted); }
.label { font-size: 0.82rem; color: var(--muted); }
.verdict { margin: 1rem 0 0; padding: 0.7rem 1.1rem; border-radius: 0.6rem; font-size: 1.05rem; font-weight: 600; }
.verdict.good { color: var(--good); background: var(--good-soft); }
.verdict.unsure { color: var(--ink); background: var(--card); border: 1px solid var(--line); }
.verdict.poor { color: var(--bad); background: var(--bad-soft); }
.verdict.wrong { color: var(--paper); background: var(--bad); }
.checks { display: flex; flex-wrap: wrap; gap: 0.45rem; margin-top: 1rem; }
.check { padding: 0.22rem 0.7rem; border-radius: 1rem; font-size: 0.82rem; color: var(--good);
  background: var(--good-soft); }
.check.no { color: var(--bad); background: var(--bad-soft); font-weight: 600; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 0.87rem; }
th { padding: 0.3rem 0.6rem; text-align: right; font-weight: 500; color: var(--muted); white-space: nowrap; }
td { padding: 0.32rem 0.6rem; text-align: right; border-top: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tr.strong td { font-weight: 650; color: var(--second); }
td .no { color: var(--bad); font-weight: 650; }
td .best { color: var(--accent); font-weight: 650; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 0.3rem 0.8rem; align-items: center;
  font-size: 0.87rem; }
.bar { height: 0.65rem; border-radius: 0.2rem; background: var(--accent); opacity: 0.75; min-width: 1px; }
.bars .value { text-align: right; color: var(--muted); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0; font-size: 0.85rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0.4rem 0 0; padding: 0.7rem 0.9rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: 0.4rem; font: 0.82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; } .card { break-inside: avoid; } }
"""


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{PALETTE}{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def row(kind: str, cells: Iterable[str]) -> str:
    """Cards side by side: `cards`, `halves` or `thirds` of the width."""
    return f'<div class="row {kind}">{"".join(cells)}</div>'


def card(title: str, content: str) -> str:
    """A card with a heading."""
    return f'<section class="card"><h2>{escape(title)}</h2>{content}</section>'


def figure(value: str, unit: str, label: str, note: str) -> str:
    """One number of the headline."""
    return (
        f'<div class="card"><div class="label">{escape(label)}</div>'
        f'<div class="figure">{escape(value)} <small>{escape(unit)}</small></div>'
        f'<div class="note">{escape(note)}</div></div>'
    )


def verdict(level: str, text: str) -> str:
    """The sentence that a reader must not miss."""
    return f'<p class="verdict {escape(level)}">{escape(text)}</p>'


def check(name: str, holds: bool, detail: str) -> str:
    """A pill that says whether something holds."""
    mark, kind = ("✓", "check") if holds else ("✗", "check no")
    text = escape(name if holds else detail[:1].upper() + detail[1:])
    return f'<span class="{kind}" title="{escape(detail)}">{mark} {text}</span>'


def table(head: Sequence[str], lines: Iterable[Sequence[str]], strong: int | None = None) -> str:
    """A table whose cells are HTML already; line number `strong` stands out."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "".join(
        f"<tr{' class=strong' if number == strong else ''}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for number, cells in enumerate(lines)
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def bars(values: Mapping[str, float], show: Mapping[str, str]) -> str:
    """Horizontal bars with a name and a text each."""
    most = max(values.values(), default=0) or 1
    return (
        '<div class="bars">'
        + "".join(
            f'<div>{escape(name)}</div><div><div class="bar" style="width:{100 * value / most:.2f}%"></div></div>'
            f'<div class="value">{escape(show[name])}</div>'
            for name, value in values.items()
        )
        + "</div>"
    )


def facts(values: Mapping[str, str]) -> str:
    """Names and values in two columns."""
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items()) + "</dl>"
    )


def code(text: str) -> str:
    """A command line."""
    return f"<pre>{escape(text)}</pre>"


def paragraph(text: str, kind: str = "note") -> str:
    """A line of prose."""
    return f'<p class="{kind}">{escape(text)}</p>'
