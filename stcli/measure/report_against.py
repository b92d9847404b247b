"""The part of the report that compares with other ways to search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stcli.measure import page, plots, show
from stcli.measure.matched import EXACT


def section(report: Mapping[str, Any], drawn: bool) -> str:
    """Rows of the page, or nothing if nobody was asked."""
    against = report.get("against")
    if not against:
        return ""
    parts = [
        page.row("", [page.card(f"Against others, {workload['name']}", _workload(report, workload, drawn))])
        for workload in against["workloads"]
    ]
    return "\n".join([*parts, page.row("", [page.card("How the others were built", _built(against))])])


def _workload(report: Mapping[str, Any], workload: Mapping[str, Any], drawn: bool) -> str:
    against = report["against"]
    drawing = plots.contest(workload, against["targets"], report["k"]) if drawn else ""
    note = (
        f"{workload['queries']:,} queries in batches of {against['batch_size']:,}, {against['threads']} threads for "
        f"everybody, after a warm-up. Each setting was tried on the first queries (column queries), as many as take "
        f"about {against['run_seconds']:g} s. Those that may be the fastest of a library at a recall were then timed "
        f"in turns, up to {report['options']['repeat']} times (column runs), on {against['timed_queries']:,} queries "
        f"or more, or as many as take {against['long_seconds']:g} s. Stars: planned, and exact. Speeds are of the "
        "fastest setting that reaches the recall; between settings, of a straight line in the logarithm of the speed. "
        "stcli is timed from filter texts to item ids, the others from ready bitmaps to rows."
    )
    tables = "".join(_matched(table, report["k"]) for table in workload["matched"])
    return drawing + page.paragraph(note) + tables


def _matched(table: Mapping[str, Any], k: int) -> str:
    lines = []
    for line in table["lines"]:
        if line["setting"] is None:
            lines.append([page.escape(line["name"]), "never reached", *["–"] * 7])
            continue
        ratio = line["ratio"]
        times = "–" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} … {ratio['high']:.2f})"
        between = "–" if line["interpolated"] is None else show.number(line["interpolated"])
        lines.append(
            [
                page.escape(line["name"]), page.escape(line["setting"]), show.recall(line["recall"]),
                show.number(line["queries_per_s"]), between, f"{line['queries']:,}", str(line["runs"]),
                show.bad(line["ineligible"]), times,
            ]
        )  # fmt: skip
    exact = table["target"] == EXACT
    title = "Exact search" if exact else f"At recall@{k} of {table['target']:g}, {table['criterion']}"
    head = [
        "", "setting", "recall", "queries/s", "between settings", "queries", "runs", "ineligible",
        "times faster, stcli",
    ]  # fmt: skip
    return f'<h2 style="margin-top:1.4rem">{page.escape(title)}</h2>' + page.table(head, lines, strong=0)


def _built(against: Mapping[str, Any]) -> str:
    lines = [
        [page.escape(peer["name"]), f"{peer['build_s']:,.1f} s", show.in_bytes(peer["index_bytes"])]
        for peer in against["peers"]
    ]
    how = page.facts({peer["name"]: peer["how"] for peer in against["peers"]})
    left_out = (page.paragraph(f"Not measured: {one['name']}: {one['reason']}") for one in against["left_out"])
    return page.table(["", "build", "index"], lines) + how + "".join(left_out)
