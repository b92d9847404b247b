"""What the tests of `bench` share: a whole benchmark, small ones, and a reader of the page."""

from html.parser import HTMLParser

import pytest

import stcli
from stcli.measure import ceilings, plots
from stcli.measure.report import read_report, render
from stcli.model.planner import Calibration
from stcli.pipeline import bench as module

OPTIONS = {"filter_column": "filter", "k": 10, "sample": 60, "repeat": 2, "probes": (4, 32), "batch_size": 25}


QUICK = [
    (module, "LATENCY_SECONDS", 0.05), (module, "STAGE_REPEATS", 1),
    (ceilings, "SIDE", 64), (ceilings, "COPIED_BYTES", 1 << 16), (ceilings, "RUNS", 1),
]  # fmt: skip
"""What a benchmark of 60 queries need not take so seriously."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for owner, name, value in QUICK:
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(plots, "available", lambda: False)  # `made` has them


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """One whole benchmark: its summary and its record."""
    output = tmp_path_factory.mktemp("bench") / "report"
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, value in QUICK:
            patch.setattr(owner, name, value)
        seen = []
        summary = stcli.bench(
            tiny.model, tiny.queries, output, items=str(tiny.items), progress=lambda *call: seen.append(call), **OPTIONS
        )
    return summary, read_report(output), output, seen


def run(tiny, tmp_path, **options):
    """A small benchmark, for what goes wrong; its record."""
    stcli.bench(tiny.model, tiny.queries, tmp_path / "r", **{**OPTIONS, "repeat": 1, "probes": (4,), **options})
    return read_report(tmp_path / "r")


def failed(report):
    return [check["name"] for check in report["checks"] if not check["ok"] and check["name"] != "The machine was quiet"]


class Page(HTMLParser):
    """Checks that elements close in order; collects what a page would fetch."""

    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.figures, self.text = [], [], 0, ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.figures += tag == "svg"
        self.fetched += [
            value for name, value in attrs if name in ("src", "href", "xlink:href") and not value.startswith("#")
        ]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(text):
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def opening(report):
    """The verdict as a reader meets it: the first sentence of the page below its title."""
    text = read_page(render(report)).text
    assert text.index(report["verdict"]["text"]) < text.index("Throughput, planned")
    return report["verdict"]["level"], report["verdict"]["text"]


def careless(model, vectors, filters, k, target_recall, **_):
    """A calibration that probes one cluster whatever the band."""
    return Calibration(model.fingerprint, k, target_recall, 0, (1,) * 5, (1.0,) * 5, (1.0,) * 5, (9,) * 5)
