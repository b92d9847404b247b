import math

import pytest

from stcli.measure.matched import EVERY_BAND, EXACT, MEAN, decisive, fastest, interpolated, match, ratios, reached


def setting(name, recall, speed, band=None, step=True, runs=None):
    bands = [{"queries": 3, "mean": band if band is not None else recall}, {"queries": 0, "mean": None}]
    speeds = {"median": speed, "runs": runs or [speed]}
    return {
        "name": name,
        "step": step,
        "queries": 7,
        "ineligible": 0,
        "recall": {"mean": recall},
        "bands": bands,
        "queries_per_s": speeds,
    }


LADDER = [setting("4", 0.8, 1000), setting("8", 0.9, 500, band=0.7), setting("16", 0.96, 100)]


def test_what_is_reached():
    assert reached(LADDER[1], MEAN) == 0.9
    assert reached(LADDER[1], EVERY_BAND) == 0.7
    assert reached({"recall": {"mean": None}, "bands": []}, EVERY_BAND) == 0


def test_the_fastest_that_reaches():
    assert fastest(LADDER, 0.85, MEAN)["name"] == "8"
    assert fastest(LADDER, 0.85, EVERY_BAND)["name"] == "16"
    assert fastest(LADDER, 0.97, MEAN) is None


def test_between_two_settings():
    # Half way from 0.8 to 0.9 the logarithm of the speed is half way too.
    assert interpolated(LADDER, 0.85, MEAN) == pytest.approx(math.sqrt(1000 * 500))
    assert interpolated(LADDER, 0.9, MEAN) == pytest.approx(500)
    assert interpolated(LADDER, 0.7, MEAN) is None
    assert interpolated(LADDER, 0.97, MEAN) is None
    apart = [LADDER[0], setting("planned", 0.99, 900, step=False)]
    assert interpolated(apart, 0.9, MEAN) is None


def test_ratios_are_of_runs_side_by_side():
    ours, theirs = setting("a", 1, 0, runs=[10, 40, 30]), setting("b", 1, 0, runs=[5, 10, 10])
    assert ratios(ours, theirs) == {"median": 3, "low": 2, "high": 4}
    assert ratios(setting("a", 1, 0, runs=[10, 40]), theirs)["median"] == 3
    assert ratios(ours, setting("b", 1, 0, runs=[10])) == {"median": 3, "low": 1, "high": 4}


def test_a_table_for_each_target_and_one_for_exact():
    contenders = [
        {"name": "stcli", "settings": [*LADDER, setting("exact", 1.0, 50)]},
        {"name": "other", "settings": LADDER[:2]},
    ]
    tables = match(contenders, (0.85, 0.95), (MEAN, EVERY_BAND))
    assert [(table["target"], table["criterion"]) for table in tables] == [
        (0.85, MEAN),
        (0.85, EVERY_BAND),
        (0.95, MEAN),
        (0.95, EVERY_BAND),
        (EXACT, MEAN),
    ]
    first, last = tables[0]["lines"], tables[-1]["lines"]
    assert (first[0]["setting"], first[0]["ratio"]) == ("8", None)
    assert first[1]["ratio"]["median"] == 1
    assert last[0]["setting"] == "exact"
    assert len(last) == 1  # the other has no exact setting


def test_only_what_decides_is_timed_again():
    recalls, speeds = [0.5, 0.8, 0.96, 0.99, 0.97, 1.0], [900, 500, 100, 40, 90, 9]
    assert decisive(recalls, speeds, 0.95) == {2, 4}  # the fastest that reaches it, and one that is nearly as fast
    assert decisive(recalls, speeds, 0.999) == {5}
    assert decisive(recalls, speeds, 0.3) == {0}
    assert decisive(recalls[:2], speeds[:2], 0.95) == set()
