"""The results of the README: corpora measured beside Faiss, PyTorch and the paper's form; tables and a plot.

    python examples/published_results.py --out examples/reports/2026-11-29 --work build/published --readme README.md \
      --corpus "R=r/items.parquet,r/queries.parquet" --corpus "Debian=debian/items.parquet,debian/queries.parquet"

Every corpus is two Parquet files: items with `item_id`, `embedding` and feature columns; queries with `query_id`,
`embedding` and, if there is one, `filter`. Writes `results.md`, `results.svg` and the report of each corpus to `--out`,
and the short tables between the `results` marks of `--readme`. Indexes stay in `--work`, and are used again. Corpora
can be measured one command each: the last one names all, and takes with `--keep` the reports that are in `--out`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import stcli
from stcli.measure import plots
from stcli.measure.matched import EVERY_BAND, EXACT
from stcli.measure.report import read_report

PAPER = "silvertorch preset"
BEGIN, END = "<!-- results: written by examples/published_results.py -->", "<!-- end of results -->"

Report = Mapping[str, Any]


def measure(
    name: str, items: str, queries: str, out: Path, work: Path, options: Mapping[str, Any], keep: bool = False
) -> Report:
    """Build, pack and bench one corpus; an artifact that is there already is used again, and `keep` a report too."""
    if keep and (out / name).is_dir():
        return read_report(out / name)
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    model = folder / "model.safetensors"
    if not model.exists():
        stcli.build_index(items, folder / "index", overwrite=True)
        stcli.pack_model(folder / "index", model)
    filters = {"filter_column": "filter"} if "filter" in pq.read_schema(queries).names else {}
    stcli.bench(model, queries, out / name, overwrite=True, **filters, **options)
    return read_report(out / name)


def head(report: Report) -> str:
    """What was measured, where and when."""
    machine, artifact, against = report["machine"], report["artifact"], report["against"]
    load = report["load"]["other_cores"]
    busy = "unknown" if load is None else f"{load:.2f} cores"
    return (
        f"{artifact['num_items']:,} items of {artifact['dim']} dimensions, k = {report['k']}, batches of "
        f"{report['batch_size']:,} queries, {against['threads']} threads on {machine['cpu']}, {report['date'][:10]}; "
        f"other processes kept {busy} busy. {report['verdict']['text']}"
    )


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)]


def times(ratio: Mapping[str, float] | None) -> str:
    """How many times faster, with the range of the turns."""
    return "" if ratio is None else f"{ratio['median']:.1f} x ({ratio['low']:.1f} … {ratio['high']:.1f})"


def speeds(report: Report) -> list[str]:
    """Each contender at each recall: its setting and how many times faster stcli is."""
    lines = []
    for workload in report["against"]["workloads"]:
        for matched in workload["matched"]:
            target = "exact" if matched["target"] == EXACT else f"{matched['target']:g}, {matched['criterion']}"
            for line in matched["lines"]:
                cells = [workload["name"], target, line["name"]]
                if line["setting"] is None:
                    lines.append([*cells, "never reached", "", "", "", "", ""])
                    continue
                speed, count = f"{line['queries_per_s']:,.0f}", f"{line['queries']:,}"
                found = [
                    line["setting"],
                    f"{line['recall']:.4f}",
                    speed,
                    count,
                    f"{line['runs']}",
                    times(line["ratio"]),
                ]
                lines.append([*cells, *found])
    heads = ["", "target", "", "setting", "recall", "queries/s", "queries at once", "runs", "stcli is faster by"]
    return table(heads, lines)


def best_of(family: str, matched: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fastest line of those whose name begins like that."""
    lines = [line for line in matched["lines"] if line["name"].startswith(family) and line["setting"] is not None]
    return max(lines, key=lambda line: line["queries_per_s"], default=None)


def summary(reports: Mapping[str, Report]) -> list[str]:
    """One line for each corpus, workload and recall: stcli and the best of each other family."""
    lines = []
    for name, report in reports.items():
        for workload in report["against"]["workloads"]:
            criteria = {matched["criterion"] for matched in workload["matched"]}
            strictest = EVERY_BAND if EVERY_BAND in criteria else "mean"
            for matched in workload["matched"]:
                exact = matched["target"] == EXACT
                if not exact and matched["criterion"] != strictest:
                    continue
                found = [best_of(family, matched) for family in ("stcli", "faiss", "torch", PAPER)]
                cells = [
                    "–" if line is None else f"{line['queries_per_s']:,.0f} ({line['recall']:.3f})" for line in found
                ]
                recall = "exact" if exact else f"{matched['target']:g}"
                bands = " in every band" if not exact and strictest == EVERY_BAND else ""
                ratio = times(found[1]["ratio"]) if found[1] is not None else ""
                lines.append([f"{name}, {workload['name']}", recall + bands, *cells, ratio])
    heads = ["", "recall", "stcli", "best Faiss", "PyTorch", "the paper's form", "faster than Faiss"]
    return table(heads, lines)


def departures(reports: Mapping[str, Report]) -> list[str]:
    """Where stcli departs from the paper, and what that changed on each corpus: its form beside ours."""
    rows = [
        ("one int8 scale for all items", "one for each item", "recall at as many probed clusters", same_probes),
        ("clusters ranked by their centroid", "by centroid and radius; scores bounded", "speed", unfiltered),
        ("one number of clusters for all queries", "planned by the share of items that pass", "speed", by_band),
        ("Bloom rows alone, results not checked", "exact rows for frequent terms, results checked", "wrong", wrong),
    ]  # fmt: skip
    told = {"speed": "queries/s at equal recall", "wrong": "results that do not satisfy their filter"}
    lines = [
        [paper, here, told.get(what, what), *(cell(report) for report in reports.values())]
        for paper, here, what, cell in rows
    ]
    return table(["the paper's form", "stcli", "what it changed (paper → stcli)", *reports], lines)


def workload_of(report: Report, name: str) -> tuple[Mapping[str, Any], str | None]:
    """A workload and, if the paper's form took no part in it, why."""
    for workload in report["against"]["workloads"]:
        if workload["name"] == name:
            if any(contender["name"] == PAPER for contender in workload["contenders"]):
                return workload, None
            left_out = [one["reason"] for one in report["against"]["left_out"] if one["name"] == PAPER]
            why = f"cannot express: {left_out[0].removeprefix(f'{name}: ')}" if left_out else "not measured"
            return workload, why
    return {}, "no filters"


def settings_of(workload: Mapping[str, Any], name: str) -> Mapping[str, Mapping[str, Any]]:
    """The settings of a contender, by name."""
    settings = next(contender["settings"] for contender in workload["contenders"] if contender["name"] == name)
    return {setting["name"]: setting for setting in settings}


def same_probes(report: Report) -> str:
    """Recall at the largest number of clusters that both measured."""
    workload, why = workload_of(report, "without filters")
    if why:
        return why
    theirs, ours = settings_of(workload, PAPER), settings_of(workload, "stcli")
    common = [name for name in theirs if name in ours]
    if not common:
        return "no setting in common"
    both = (f"{settings[common[-1]]['recall']['mean']:.4f}" for settings in (theirs, ours))
    return " → ".join(both) + f" ({common[-1]})"


def unfiltered(report: Report) -> str:
    """Speeds without filters at the lowest recall compared."""
    return faster(*workload_of(report, "without filters"))


def by_band(report: Report) -> str:
    """Speeds with filters, the recall held in every band."""
    return faster(*workload_of(report, "with filters"))


def faster(workload: Mapping[str, Any], why: str | None) -> str:
    """Speeds of the paper's form and of ours in the strictest table of the lowest recall."""
    if why:
        return why
    lowest = min(matched["target"] for matched in workload["matched"])
    matched = [entry for entry in workload["matched"] if entry["target"] == lowest][-1]
    theirs, ours = best_of(PAPER, matched), best_of("stcli", matched)
    shown = ["never" if line is None else f"{line['queries_per_s']:,.0f}" for line in (theirs, ours)]
    ratio = f" ({theirs['ratio']['median']:.1f} x)" if theirs and theirs["ratio"] else ""
    return " → ".join(shown) + ratio + f" at {lowest:g}"


def wrong(report: Report) -> str:
    """Share of the results that do not satisfy their filter, in the setting with the highest recall."""
    workload, why = workload_of(report, "with filters")
    if why:
        return why
    top = max(settings_of(workload, PAPER).values(), key=lambda setting: setting["recall"]["mean"] or 0.0)
    ours = sum(setting["ineligible"] for setting in settings_of(workload, "stcli").values())
    return f"{top['ineligible'] / (top['queries'] * report['k']):.2%} → {ours}"


def panels(reports: Mapping[str, Report]) -> dict[str, Mapping[str, Any]]:
    """Every workload of every corpus under its title."""
    return {
        f"{name}, {workload['name']}": workload
        for name, report in reports.items()
        for workload in report["against"]["workloads"]
    }


def insert(readme: Path, lines: Sequence[str]) -> None:
    """Replace what stands between the marks."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme}: has no lines {BEGIN!r} and {END!r}; put them where the results belong")
    readme.write_text(before + "\n".join([BEGIN, "", *lines, "", END]) + after, encoding="utf-8")


def read_command(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, tuple[str, str]]]:
    """The options, and the files of each corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", required=True, help="NAME=ITEMS,QUERIES; may be given again")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables, plot and reports")
    parser.add_argument("--work", type=Path, required=True, help="folder for indexes and artifacts")
    parser.add_argument("--keep", action="store_true", help="measure only the corpora without a report in --out")
    parser.add_argument("--readme", type=Path, help="Markdown file with the marks")
    parser.add_argument("--against", default="faiss,torch,paper", help="others to measure (default %(default)s)")
    parser.add_argument("--at", default="0.95,0.98", help="recalls to compare at (default %(default)s)")
    parser.add_argument("--k", type=int, default=100, help="results a query (default %(default)s)")
    parser.add_argument("--sample", type=int, default=10_000, help="queries, in one batch (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each setting (default %(default)s)")
    given = parser.parse_args(argv)
    corpora = {}
    for entry in given.corpus:
        name, _, paths = entry.partition("=")
        items, _, queries = paths.partition(",")
        if not queries:
            parser.error(f"--corpus {entry!r}: expected NAME=ITEMS,QUERIES")
        corpora[name] = (items, queries)
    return given, corpora


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every corpus and write what the README shows."""
    given, corpora = read_command(argv)
    options = {
        "against": given.against.split(","),
        "compare_at": [float(part) for part in given.at.split(",")],
        "k": given.k,
        "sample": given.sample,
        "repeat": given.repeat,
    }
    reports = {
        name: measure(name, *paths, given.out, given.work, options, given.keep) for name, paths in corpora.items()
    }
    text = []
    for name, report in reports.items():
        text += [f"### {name}", "", head(report), "", *speeds(report), ""]
    (given.out / "results.md").write_text("\n".join(text), encoding="utf-8")
    picture = plots.contests(panels(reports), options["compare_at"], given.k)
    (given.out / "results.svg").write_text(picture, encoding="utf-8")
    if given.readme is not None:
        shown = Path(os.path.relpath(given.out, given.readme.parent)).as_posix()
        short = [f"- **{name}**: {head(report)}" for name, report in reports.items()]
        short += [
            "",
            "Queries a second, filters and re-scoring included, and the recall reached:",
            "",
            *summary(reports),
        ]
        if "paper" in options["against"]:
            short += ["", "Where stcli departs from the paper, measured with its own form:", "", *departures(reports)]
        short += ["", f"![Recall against queries a second]({shown}/results.svg)", ""]
        short += [f"All settings: [{shown}/results.md]({shown}/results.md), with the report of each corpus beside it."]
        insert(given.readme, short)
    command = shlex.join(["python", "examples/published_results.py", *(sys.argv[1:] if argv is None else argv)])
    print(f"{given.out / 'results.md'}, {given.out / 'results.svg'}; again with: {command}")


if __name__ == "__main__":
    main()
