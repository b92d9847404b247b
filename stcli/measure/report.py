"""The report directory: `report.json` is the record, `report.html` is drawn from it. See FORMAT.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stcli.errors import FormatError
from stcli.measure import page, plots, report_against, show
from stcli.measure.measurements import GIVEN
from stcli.measure.metrics import TWO_SIDED_95
from stcli.measure.record import headline_latency
from stcli.measure.verdict import BUSY_CORES, reaches, show_short
from stcli.storage.atomic import write_text
from stcli.storage.manifest import REPORT, check_sealed, read_json, sealed

RECORD, PAGE = "report.json", "report.html"


def write_report(folder: Path, body: Mapping[str, Any]) -> dict[str, Any]:
    """Write `report.html` and then `report.json` into an empty directory; return the sealed record."""
    report = sealed(REPORT, dict(body))
    write_text(folder / PAGE, render(report))
    text = json.dumps(report, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / RECORD, text + "\n")
    return report


def read_report(folder: Path) -> dict[str, Any]:
    """The record of a report directory.

    Raises:
        FormatError: not one, damaged, edited or of another version.
    """
    path = folder / RECORD
    record = read_json(path, "report")
    if isinstance(record, dict) and "format" not in record and {"machine", "rows", "skipped"} <= record.keys():
        raise FormatError(
            f"{path}: is what make gpu measured, expected a report of stcli bench; open {folder / PAGE} in a browser"
        )
    report = check_sealed(REPORT, record, path)
    if not report["runs"]:
        raise FormatError(f"{path}: its 'runs' is [], expected one at least; it was edited, make it again")
    return report


def render(report: Mapping[str, Any]) -> str:
    """The page: one HTML text that needs nothing else."""
    drawn = plots.available()
    parts = [
        _title(report),
        page.verdict(report["verdict"]["level"], report["verdict"]["text"]),
        _headline(report),
        '<div class="checks">'
        + "".join(page.check(c["name"], c["ok"], c["detail"]) for c in report["checks"])
        + "</div>",
        page.row(
            "halves",
            [
                page.card("Recall against throughput", _recall_plot(report, drawn)),
                page.card("Recall by share of items that the filter leaves", _band_plot(report, drawn)),
            ],
        ),
        page.row("", [page.card("Settings", _settings(report))]),
        report_against.section(report, drawn),
        page.row(
            "halves",
            [
                page.card("Latency and throughput by batch size", _latency(report, drawn)),
                page.card("Where the time goes", _stages(report)),
            ],
        ),
        page.row("thirds", [page.card(title, content) for title, content in _facts(report).items()]),
        page.row("", [page.card("Use and repeat", _commands(report))]),
    ]
    return page.document(f"stcli bench: {_name(report)}", "\n".join(parts))


def _name(report: Mapping[str, Any]) -> str:
    return Path(report["inputs"]["model"]).name


def _title(report: Mapping[str, Any]) -> str:
    artifact, machine, queries = report["artifact"], report["machine"], report["queries"]
    line = (
        f"{artifact['num_items']:,} items of {artifact['dim']} dimensions · {queries['sampled']:,} queries, "
        f"{queries['filtered']:,} with a filter · {machine['device']} · {machine['cpu']} · {report['date'][:10]}"
    )
    return f"<h1>{page.escape(_name(report))}</h1>" + page.paragraph(line, "muted")


def _headline(report: Mapping[str, Any]) -> str:
    planned, batch, memory = report["runs"][0], headline_latency(report), report["memory_bytes"]
    recall, speed, ms, size = planned["recall"], planned["queries_per_s"], batch["ms"], report["index_bytes"]["total"]
    interval = f"{show.interval(recall)}, 95 % interval" if recall["queries"] else "no eligible items"
    runs = f"{show.number(speed['low'])} … {show.number(speed['high'])} in {len(speed['runs'])} runs"
    rest = f"p95 {show.number(ms['p95'])} · p99 {show.number(ms['p99'])} ms, {batch['batches']:,} batches"
    items, mapped = report["artifact"]["num_items"], f"{show.in_bytes(memory['peak_resident'])} with mapped pages"
    return page.row(
        "cards",
        [
            page.figure(show.recall(recall["mean"], 3), "", f"Recall@{report['k']}, planned", interval),
            page.figure(show.number(speed["median"]), "queries/s", "Throughput, planned", runs),
            page.figure(show.number(ms["p50"]), "ms", f"Median latency of {batch['batch_size']:,} queries", rest),
            page.figure(*show.size(memory["peak_private"]), "Peak memory", mapped),
            page.figure(*show.size(size), "Artifact", f"{size / items:,.0f} bytes an item"),
            *_cost(report),
        ],
    )


def _cost(report: Mapping[str, Any]) -> list[str]:
    cost = report["cost"]
    if cost is None:
        return []
    note = f"at {cost['price_per_hour']:g} an hour, planned"
    return [page.figure(show.number(cost["per_million"]), "", "Cost of a million queries", note)]


def _recall_plot(report: Mapping[str, Any], drawn: bool) -> str:
    note = (
        "Numbers are clusters probed. Filled marks and the line: no other setting has more of both. Whiskers: 95 % "
        "interval of recall, range of the runs. Dotted: the target."
    )
    return plots.recall_against_throughput(report) + page.paragraph(note) if drawn else _no_plots()


def _band_plot(report: Mapping[str, Any], drawn: bool) -> str:
    bands = report["runs"][0]["bands"]
    if drawn:
        note = "Bars: 95 % interval of the mean. One average can hide a band that collapses. Dotted: the target."
        return plots.recall_by_band(report) + page.paragraph(note)
    lines = [
        [
            page.escape(band["band"]),
            f"{band['queries']:,}",
            show.recall(band["mean"]),
            show.interval(band),
            show.recall(band["worst_tenth"]),
        ]
        for band in bands
        if band["queries"]
    ]
    return page.table(["eligible", "queries", "recall", "95 % interval", "worst tenth"], lines)


def _no_plots() -> str:
    return page.paragraph("Plots need matplotlib, which is not installed here: pip install 'stcli[bench]'")


def _settings(report: Mapping[str, Any]) -> str:
    packed = "recall_packed" in report["runs"][0]
    head = [
        "setting",
        f"recall@{report['k']}",
        "95 % interval",
        "worst tenth",
        "queries/s, median run",
        "range",
        "items scored",
        "ineligible",
        "incomplete",
    ]
    if packed:
        head.insert(4, "recall, packed")
    lines = []
    for run in report["runs"]:
        recall, speed = run["recall"], run["queries_per_s"]
        median = show.number(speed["median"])
        best = f'<span class="best">{median}</span>' if run["frontier"] else median
        line = [
            page.escape(run["name"]),
            show.recall(recall["mean"]),
            show.interval(recall),
            show.recall(recall["worst_tenth"]),
            best,
            f"{show.number(speed['low'])} … {show.number(speed['high'])}",
            show.number(run["items_scored"]),
            show.bad(run["ineligible"]),
            show.bad(run["incomplete"]),
        ]
        if packed:
            line.insert(4, show.recall(run["recall_packed"]["mean"]))
        lines.append(line)
    truth, repeat = report["truth"], report["options"]["repeat"]
    if report["truth"]["over"] == GIVEN:
        about = f"Truth: the lists in {report['inputs']['truth']}; an item counts if it stands in its list. "
    else:
        about = (
            f"Truth: every item scored over the {truth['over']} under the exact filter, in float32, and all that may "
            "be among the best again in float64. A result within "
            f"{truth['tie_tolerance']['median']:.1e} (median) of the last true score counts as tied with it. "
        )
    note = about + (
        f"Medians of {repeat} interleaved runs in batches of {report['batch_size']:,}, after one warm-up; filters are "
        "parsed and planned anew in each. Blue: no other setting has more recall and more speed."
    )
    return page.table(head, lines, strong=0) + page.paragraph(note) + _relevance(report)


def _relevance(report: Mapping[str, Any]) -> str:
    """How the relevant items stand, in every setting; the exact one shows what the embeddings themselves can do."""
    if "relevance" not in report["runs"][0]:
        return ""
    k, names = report["k"], ("hit_rate", "recall", "ndcg")
    lines = [
        [
            page.escape(run["name"]),
            *(f"{show.recall(part['mean'])} ({show.interval(part)})" for part in map(run["relevance"].get, names)),
        ]
        for run in report["runs"]
    ]
    count = report["runs"][0]["relevance"]["ndcg"]["queries"]
    note = f"{count:,} queries with relevant items. What exact search misses, the embeddings do not know."
    table = page.table(["setting", f"hit rate@{k}", f"recall@{k}", f"NDCG@{k}"], lines, strong=0)
    return '<h2 style="margin-top:1.4rem">Relevant items</h2>' + table + page.paragraph(note)


def _latency(report: Mapping[str, Any], drawn: bool) -> str:
    lines = [
        [
            f"{line['batch_size']:,}",
            *(show.number(line["ms"][point]) for point in ("p50", "p95", "p99")),
            show.number(line["queries_per_s"]),
            f"{line['batches']:,}",
        ]
        for line in report["latency"]
    ]
    table = page.table(["queries in a batch", "p50 ms", "p95 ms", "p99 ms", "queries/s, all batches", "batches"], lines)
    note = (
        "The planned setting alone, one batch after another. Queries a second are those of all batches together, slow "
        "ones included; the headline and the settings above tell the median of runs over the whole sample."
    )
    return (plots.throughput_by_batch(report) if drawn else "") + table + page.paragraph(note)


def _stages(report: Mapping[str, Any]) -> str:
    stages = _largest_first(report["stages_s"])
    total = sum(stages.values()) or 1
    count = report["queries"]["sampled"]
    near = report["ceilings"]["stages"]
    shown = {
        name: f"{1e6 * seconds / count:,.1f} µs a query · {seconds / total:.0%}"
        + (f" · {near[name]['share']:.0%} of the ceiling" if name in near else "")
        for name, seconds in stages.items()
    }
    sizes = {name: size for name, size in _largest_first(report["index_bytes"]).items() if name != "total" and size}
    items = report["artifact"]["num_items"]
    sized = {name: f"{show.in_bytes(size)} · {size / items:,.1f} B an item" for name, size in sizes.items()}
    rate = report["filter"]["false_positive_rate"]
    note = (
        f"The bit matrix lets through {show.percent(rate['mean'])} of the items that are not eligible. "
        f"All filter work takes {report['filter']['us_per_query']:,.1f} µs a query."
        if rate
        else ""
    )
    return (
        page.bars(stages, shown)
        + page.paragraph(_ceilings(report))
        + '<h2 style="margin-top:1.4rem">What the artifact holds</h2>'
        + page.bars(sizes, sized)
        + page.paragraph(note)
    )


def _ceilings(report: Mapping[str, Any]) -> str:
    limits = report["ceilings"]
    int8, copied = limits["int8_multiply_adds_per_s"], limits["copy_bytes_per_s"]
    rate = "unknown" if int8 is None else f"{int8 / 1e9:,.0f} billion multiply-adds a second"
    return (
        f"Ceilings of this machine, measured now: int8 matrix product {rate}; copying memory {copied / 1e9:,.1f} GB/s. "
        "Shares count only the work that no search could avoid."
    )


def _largest_first(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items(), key=lambda item: -item[1]))


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Machine": page.facts(_machine(report)),
        "Artifact and queries": page.facts(_artifact(report)),
        "Choices": page.facts(_choices(report)),
    }


def _machine(report: Mapping[str, Any]) -> dict[str, str]:
    machine, load = report["machine"], report["load"]
    busy, most = load["other_cores"], load["most_other_cores"]
    return {
        "cpu": machine["cpu"],
        "cores": f"{machine['cores']}, {machine['threads']} threads used",
        "instructions": ", ".join(machine["instruction_sets"]) or "none that matter",
        "memory": f"{show.in_bytes(machine['memory_bytes'])}, {show.in_bytes(machine['free_memory_bytes'])} free",
        "runs on": machine["device"],
        "system": machine["system"],
        "other load": "unknown" if busy is None else f"{busy:.2f} cores, at most {most:.2f} (quiet: {BUSY_CORES})",
        **report["versions"],
    }


def _artifact(report: Mapping[str, Any]) -> dict[str, str]:
    artifact, queries = report["artifact"], report["queries"]
    sizes = " / ".join(f"{size:,}" for size in artifact["cluster_sizes"])
    told = {
        "artifact": artifact["fingerprint"][:16],
        "items": f"{artifact['num_items']:,} × {artifact['dim']}, {artifact['embedding_dtype']} packed",
        "metric": artifact["metric"],
        "clusters": f"{artifact['num_clusters']:,} of {sizes} items (least, median, most)",
        "terms": f"{artifact['filter']['num_terms']:,}, {artifact['filter']['own_rows']:,} own rows",
        "query table": f"{queries['rows']:,} rows",
        "sample": f"{queries['sampled']:,} queries, {queries['nothing_eligible']:,} with nothing eligible",
    }
    if queries["rejected"]:
        told["rejected"] = f"{queries['rejected']:,}: {'; '.join(queries['reasons'])}"
    return told


def _choices(report: Mapping[str, Any]) -> dict[str, str]:
    options, queries, timings, calibration = (report[key] for key in ("options", "queries", "timings_s", "calibration"))
    planned, clusters = report["runs"][0], report["artifact"]["num_clusters"]
    told = {"target recall": f"{options['target_recall']:g}"}
    if calibration is None:
        told["probes"] = _probes(planned["probes"], clusters)
    else:
        every = queries["calibrated_on"] == queries["rows"]
        sample = "all queries of the table" if every else f"{queries['calibrated_on']:,} queries drawn apart"
        told["calibrated on"] = f"{sample}, as retrieve does"
        for band, number in zip(planned["bands"], calibration["probes"], strict=True):
            if band["queries"]:
                told[f"probes, {band['band']}"] = _probes(number, clusters)
    return told | {
        "seed": str(options["seed"]),
        "interval": f"normal, ± {TWO_SIDED_95:.2f} standard errors",
        "time taken": f"{timings['total']:,.0f} s, {timings['truth']:,.0f} s of it for the truth",
    }


def _probes(number: int, clusters: int) -> str:
    return "every admitted item" if number >= clusters else f"{number:,} of {clusters:,}"


def _commands(report: Mapping[str, Any]) -> str:
    advice, planned, target = report["recommended"], report["runs"][0], report["options"]["target_recall"]
    short = show_short(planned, target)
    told = "reaches" if reaches(planned, target) else "does not reach"
    told = f"The planned setting {told} the target" + (f"; below it in band {short}." if short else ".")
    words = (
        f"Fastest setting that reaches the target in every band ({advice['setting']}):"
        if advice["reaches_target"]
        else "No setting reaches the target in every band; the exact one comes nearest:"
    )
    return (
        page.paragraph("This report again:")
        + page.code(report["command"])
        + page.paragraph(words)
        + page.code(advice["command"])
        + (page.paragraph(told) if short or advice["setting"] != planned["name"] else "")
    )
