"""The figures of the benchmark report, as SVG that takes its colours and fonts from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stcli.measure import page

COLORS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "accent": "#040404",
    "second": "#050505",
    "third": "#060606",
    "fourth": "#070707",
    "fifth": "#080808",
    "sixth": "#090909",
}
"""Stand-ins that `_svg` replaces by the page's variables of that name, so that the figure follows light and dark."""

SIZE = (5.2, 3.3)
"""Inches at 72 to the inch; the page scales the figure to its column."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stcli",
    "font.size": 9,
    "text.color": COLORS["ink"],
    "axes.edgecolor": COLORS["line"],
    "axes.labelcolor": COLORS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLORS["line"],
    "ytick.color": COLORS["line"],
    "xtick.labelcolor": COLORS["muted"],
    "ytick.labelcolor": COLORS["muted"],
    "figure.constrained_layout.use": True,
}


SHADES = {
    ",SQ8": "accent",
    ",Flat": "third",
    "faiss Flat": "fourth",
    "hybrid": "fifth",
    "torch": "sixth",
    "preset": "muted",
}
"""The colour of a contender by the end of its name, so that it is the same in every picture."""


def available() -> bool:
    """Matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def recall_against_throughput(report: Mapping[str, Any]) -> str:
    """Every setting as a point; the best for some recall are joined by a line."""
    runs = [run for run in report["runs"] if run["recall"]["mean"] is not None]

    def draw(axes: Any) -> None:
        best = sorted((run["recall"]["mean"], run["queries_per_s"]["median"]) for run in runs if run["frontier"])
        axes.plot(*zip(*best, strict=True), color=COLORS["accent"], linewidth=1.6, alpha=0.55, zorder=2)
        # Marker, its size, and where its label stands: planned is often among the probes, exact just above the last.
        marks: dict[str, tuple[str, int, tuple[int, int], str]] = {
            "probes": ("o", 26, (5, 5), "left"),
            "planned": ("*", 150, (8, 6), "left"),
            "exact": ("D", 36, (-8, -4), "right"),
        }
        for run in sorted(runs, key=lambda run: run["kind"] == "planned"):
            recall, speed = run["recall"], run["queries_per_s"]
            color = COLORS["second"] if run["kind"] == "planned" else COLORS["accent"]
            axes.errorbar(
                recall["mean"], speed["median"],
                xerr=[[recall["mean"] - recall["low"]], [recall["high"] - recall["mean"]]],
                yerr=[[speed["median"] - speed["low"]], [speed["high"] - speed["median"]]],
                color=color, linewidth=0.8, alpha=0.5, zorder=3,
            )  # fmt: skip
            shape, size, offset, side = marks[run["kind"]]
            filled = color if run["frontier"] else "none"
            axes.scatter(
                recall["mean"],
                speed["median"],
                s=size,
                c=filled,
                marker=shape,
                edgecolors=color,
                linewidths=1.2,
                zorder=4,
            )
            label = str(run["probes"]) if run["kind"] == "probes" else run["name"]
            axes.annotate(
                label, (recall["mean"], speed["median"]), offset, textcoords="offset points", fontsize=8.5, ha=side,
                zorder=5, color=COLORS["second"] if run["kind"] == "planned" else COLORS["muted"],
            )  # fmt: skip
        axes.axvline(report["options"]["target_recall"], color=COLORS["muted"], linewidth=0.9, linestyle=(0, (2, 3)))
        speeds = [run["queries_per_s"]["median"] for run in runs]
        if max(speeds) > 8 * min(speeds):
            axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
        axes.margins(x=0.08, y=0.12)
        axes.set_xlabel(f"recall@{report['k']}")
        axes.set_ylabel("queries a second")

    return _figure(draw, "Recall against throughput") if runs else ""


def contest(workload: Mapping[str, Any], targets: Sequence[float], k: int) -> str:
    """Recall against throughput of every contender; the settings that differ in one number are joined."""

    def draw(axes: Any) -> None:
        _draw_contest(axes, workload, targets, k)
        axes.legend(
            frameon=False, fontsize=8, labelcolor=COLORS["muted"], loc="center left", bbox_to_anchor=(1.01, 0.5)
        )

    return _figure(draw, f"Recall against throughput {workload['name']}", (10.8, 4.0))


def contests(panels: Mapping[str, Mapping[str, Any]], targets: Sequence[float], k: int) -> str:
    """Several workloads as one picture that stands on its own, light and dark; two in a row, each under its name."""
    rows = -(-len(panels) // 2)

    def draw(figure: Any) -> None:
        for number, (name, workload) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, 2, number + 1)
            _draw_contest(axes, workload, targets, k)
            axes.set_title(name, fontsize=10, color=COLORS["ink"])
            axes.legend(frameon=False, fontsize=7.5, labelcolor=COLORS["muted"], loc="lower left")

    picture = _drawn(draw, "Recall against throughput", (10.8, 3.6 * rows))
    style = f"<style>{page.PALETTE} svg {{ font-family: system-ui, sans-serif; }}</style>"
    return picture.replace(">", f">{style}", 1)


def _draw_contest(axes: Any, workload: Mapping[str, Any], targets: Sequence[float], k: int) -> None:
    for number, contender in enumerate(workload["contenders"]):
        shades = (shade for ending, shade in SHADES.items() if contender["name"].endswith(ending))
        color = COLORS["second" if number == 0 else next(shades, "ink")]
        points = [
            (setting["recall"]["mean"], setting["queries_per_s"]["median"], setting["step"])
            for setting in contender["settings"]
            if setting["recall"]["mean"] is not None
        ]
        steps = [point[:2] for point in points if point[2]]
        others = [point[:2] for point in points if not point[2]]
        name, width = contender["name"], 2.2 if number == 0 else 1.2
        if steps:
            axes.plot(*zip(*steps, strict=True), color=color, linewidth=width, marker="o", markersize=3.5, label=name)
        if others:
            axes.scatter(*zip(*others, strict=True), color=color, marker="*", s=90, zorder=4)
    for target in targets:
        axes.axvline(target, color=COLORS["muted"], linewidth=0.9, linestyle=(0, (2, 3)))
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    lowest = min(targets)
    axes.set_xlim(max(lowest - 4 * (1 - lowest) - 0.05, 0), 1 + 0.1 * (1 - lowest) + 0.005)
    axes.set_xlabel(f"recall@{k}")
    axes.set_ylabel("queries a second")


def recall_by_band(report: Mapping[str, Any]) -> str:
    """Recall of the planned setting, with its interval, for each band of the pass rate."""
    bands = [band for band in report["runs"][0]["bands"] if band["queries"]]

    def draw(axes: Any) -> None:
        for place, band in enumerate(reversed(bands)):
            axes.plot(
                [band["low"], band["high"]],
                [place, place],
                color=COLORS["accent"],
                linewidth=5,
                alpha=0.25,
                solid_capstyle="round",
            )
            axes.scatter(band["mean"], place, s=42, c=COLORS["accent"], zorder=3)
            axes.annotate(
                f"{band['mean']:.3f}",
                (band["mean"], place),
                (0, 8),
                textcoords="offset points",
                fontsize=8.5,
                ha="center",
            )
        axes.axvline(report["options"]["target_recall"], color=COLORS["muted"], linewidth=0.9, linestyle=(0, (2, 3)))
        axes.set_yticks(range(len(bands)), [f"{band['band']}\n{band['queries']:,} queries" for band in reversed(bands)])
        low = min([band["low"] for band in bands] + [report["options"]["target_recall"]])
        axes.set_xlim(max(min(low - 0.1 * (1 - low), 0.9), -0.02), 1 + 0.08 * (1 - min(low, 0.9)))
        axes.set_ylim(-0.5, len(bands) - 0.3)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"recall@{report['k']} of the planned setting")

    return _figure(draw, "Recall by share of eligible items") if bands else ""


def throughput_by_batch(report: Mapping[str, Any]) -> str:
    """Queries a second at each batch size."""
    lines = report["latency"]

    def draw(axes: Any) -> None:
        sizes = [line["batch_size"] for line in lines]
        speeds = [line["queries_per_s"] for line in lines]
        axes.plot(sizes, speeds, color=COLORS["accent"], linewidth=1.6, marker="o", markersize=5)
        for size, speed in zip(sizes, speeds, strict=True):
            axes.annotate(f"{speed:,.0f}", (size, speed), (0, 7), textcoords="offset points", fontsize=8.5, ha="center")
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(0, 1.18 * max(speeds))
        _plain_numbers(axes.yaxis)
        axes.margins(x=0.1)
        axes.set_xlabel("queries in a batch")
        axes.set_ylabel("queries a second")

    return _figure(draw, "Throughput against batch size", (5.2, 2.5))


def _plain_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())


def _figure(draw: Callable[[Any], None], title: str, size: tuple[float, float] = SIZE) -> str:
    """A figure with one pair of axes."""
    return _drawn(lambda figure: draw(figure.add_subplot()), title, size)


def _drawn(draw: Callable[[Any], None], title: str, size: tuple[float, float]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _svg(buffer.getvalue(), title)


def _svg(text: str, title: str) -> str:
    """The svg element alone, with the page's colours and font, scaled by its view box, and a name for readers."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    for name, color in COLORS.items():
        text = text.replace(color, f"var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
