"""The results of the README: corpora measured beside Faiss, PyTorch and the paper's form; tables and a plot.

    python examples/published_results.py --out results \
      --corpus "R=r/items.parquet,r/queries.parquet" --corpus "Debian=debian/items.parquet,debian/queries.parquet"

Every corpus is two Parquet files: items with `item_id`, `embedding` and feature columns; queries with `query_id`,
`embedding` and, if there is one, `filter`. Writes `results.md`, `results.svg` and the whole report of each corpus.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import stcli
from stcli.measure.matched import EXACT
from stcli.measure.report import read_report

PAPER = "silvertorch preset"


def measure(name: str, items: str, queries: str, out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Build, pack and bench one corpus; an index that is there already is used again."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.safetensors"
    if not model.exists():
        stcli.build_index(items, folder / "index", overwrite=True)
        stcli.pack_model(folder / "index", model)
    filters = {"filter_column": "filter"} if "filter" in pq.read_schema(queries).names else {}
    stcli.bench(model, queries, folder / "report", overwrite=True, **filters, **options)
    return read_report(folder / "report")


def head(report: Mapping[str, Any]) -> str:
    """What was measured, where and when."""
    machine, artifact, against = report["machine"], report["artifact"], report["against"]
    load = report["load"]["other_cores"]
    busy = "unknown" if load is None else f"{load:.2f} cores"
    return (
        f"{artifact['num_items']:,} items of {artifact['dim']} dimensions, k = {report['k']}, batches of "
        f"{report['batch_size']:,} queries, {against['threads']} threads on {machine['cpu']}, {report['date'][:10]}; "
        f"other processes kept {busy} busy. {report['verdict']['text']}"
    )


def speeds(report: Mapping[str, Any]) -> list[str]:
    """A Markdown table: each contender at each recall, its setting and how many times faster stcli is."""
    lines = ["| | target | | setting | recall | queries/s | stcli is faster by |", "|---|---|---|---|---|---|---|"]
    for workload in report["against"]["workloads"]:
        for table in workload["matched"]:
            target = "exact" if table["target"] == EXACT else f"{table['target']:g}, {table['criterion']}"
            for line in table["lines"]:
                cells = [workload["name"], target, line["name"]]
                if line["setting"] is None:
                    lines.append("| " + " | ".join([*cells, "never reached", "", "", ""]) + " |")
                    continue
                ratio = line["ratio"]
                faster = "" if ratio is None else f"{ratio['median']:.1f} x ({ratio['low']:.1f} … {ratio['high']:.1f})"
                cells += [line["setting"], f"{line['recall']:.4f}", f"{line['queries_per_s']:,.0f}", faster]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def departures(report: Mapping[str, Any]) -> list[str]:
    """Where stcli departs from the paper, and what that changed here: numbers of the paper's form beside ours."""
    lines = ["| the paper's form | here | what it changed |", "|---|---|---|"]
    for workload in report["against"]["workloads"]:
        by_name = {contender["name"]: contender["settings"] for contender in workload["contenders"]}
        if PAPER not in by_name:
            reasons = [one["reason"] for one in report["against"]["left_out"] if one["name"] == PAPER]
            lines.append(f"| cannot express these filters | ranges by slices | {'; '.join(reasons)} |")
            continue
        theirs, ours = by_name[PAPER], by_name["stcli"]
        top = max(theirs, key=lambda setting: setting["recall"]["mean"] or 0.0)
        exact = next(setting for setting in ours if setting["name"] == "exact")
        where = workload["name"]
        lines.append(
            f"| one int8 scale for all items | a scale for each, and exact search that proves itself | {where}: best "
            f"recall {top['recall']['mean']:.4f}, here {exact['recall']['mean']:.4f} |"
        )
        if workload["name"] == "with filters":
            wrong, fine = max(line["ineligible"] for line in theirs), sum(line["ineligible"] for line in ours)
            lines.append(
                "| Bloom rows alone, results not checked | exact rows for frequent terms, results verified | "
                f"ineligible results of {top['queries']:,} queries: at most {wrong:,}, here {fine:,} |"
            )
        for table in workload["matched"]:
            ratio = next(one["ratio"] for one in table["lines"] if one["name"] == PAPER)
            if ratio is not None and table["target"] != EXACT:
                lines.append(
                    "| one number of clusters for all queries | planned by band of the pass rate | "
                    f"{where}, recall {table['target']:g} ({table['criterion']}): {ratio['median']:.1f} times as fast "
                    f"({ratio['low']:.1f} … {ratio['high']:.1f}) |"
                )
    return lines


def plot(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One picture, a panel for each corpus and workload: recall against queries a second."""
    from matplotlib.figure import Figure

    panels = [(name, report, load) for name, report in reports.items() for load in report["against"]["workloads"]]
    figure = Figure(figsize=(5 * min(len(panels), 2), 3.6 * -(-len(panels) // 2)), layout="constrained")
    for number, (name, report, workload) in enumerate(panels):
        axes = figure.add_subplot(-(-len(panels) // 2), min(len(panels), 2), number + 1)
        for contender in workload["contenders"]:
            ours = contender["name"] == "stcli"
            points = sorted(
                (setting["recall"]["mean"], setting["queries_per_s"]["median"])
                for setting in contender["settings"]
                if setting["frontier"] or setting["step"] or setting["name"] == "exact"
            )
            axes.plot(
                *zip(*points, strict=True), marker="o", markersize=3.5, linewidth=2.4 if ours else 1.1,
                color="#b4511a" if ours else None, label=contender["name"], zorder=3 if ours else 2,
            )  # fmt: skip
        axes.set(yscale="log", xlim=(0.8, 1.005), xlabel=f"recall@{report['k']}", ylabel="queries a second")
        axes.set_title(f"{name}, {workload['name']}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every corpus and write what the README shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", required=True, help="NAME=ITEMS,QUERIES; may be given again")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--against", default="faiss,torch,paper", help="others to measure (default %(default)s)")
    parser.add_argument("--at", default="0.95,0.98", help="recalls to compare at (default %(default)s)")
    parser.add_argument("--k", type=int, default=100, help="results a query (default %(default)s)")
    parser.add_argument("--sample", type=int, default=1000, help="queries (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each setting (default %(default)s)")
    given = parser.parse_args(argv)
    options = {
        "against": given.against.split(","),
        "compare_at": [float(part) for part in given.at.split(",")],
        "k": given.k,
        "sample": given.sample,
        "repeat": given.repeat,
    }
    reports = {}
    for entry in given.corpus:
        name, _, paths = entry.partition("=")
        items, _, queries = paths.partition(",")
        if not queries:
            parser.error(f"--corpus {entry!r}: expected NAME=ITEMS,QUERIES")
        reports[name] = measure(name, items, queries, given.out, options)
    text = []
    for name, report in reports.items():
        text += [f"### {name}", "", head(report), "", *speeds(report), ""]
        if "paper" in given.against.split(","):
            text += ["Where stcli departs from the paper:", "", *departures(report), ""]
        text += ["```", report["command"], "```", ""]
    (given.out / "results.md").write_text("\n".join(text), encoding="utf-8")
    plot(reports, given.out / "results.svg")
    print(f"{given.out / 'results.md'}, {given.out / 'results.svg'}")


if __name__ == "__main__":
    main()
