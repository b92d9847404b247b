from types import SimpleNamespace

import numpy as np
import pytest

from stcli.measure import trials
from stcli.peers.protocol import WHOLE_BATCH


class Batch:
    """Some queries, as far as a trial looks at them."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def take(self, part):
        return Batch(len(range(self.count)[part]))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only searches move."""
    now = [0.0]
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def trial_of(clock, fixed, each, at_once):
    asked = []

    def search(queries):
        clock[0] += fixed + each * len(queries)
        asked.append(len(queries))
        return np.zeros((len(queries), 1), np.int64)

    return trials.Trial("somebody", "a setting", "a library", search, True, at_once), asked


@pytest.mark.parametrize(
    ("fixed", "each", "at_once", "near", "expected"),
    [
        (0.0, 0.005, 1, True, 600),  # shares nothing: about three seconds
        (0.0, 0.005, 1, False, 256),  # too far off: the pilot is enough
        (0.0, 1e-6, 1, True, 10_000),
        (0.0, 0.5, 1, True, 100),  # too slow for the time: as few as a mean needs
        (
            3.0,
            0.001,
            2048,
            True,
            2048,
        ),  # shares its work, as Faiss Flat: a batch that shows its speed, whatever the time
        (3.0, 0.001, 2048, False, 2048),
        (3.0, 0.001, WHOLE_BATCH, False, 10_000),
    ],
)
def test_a_first_run_fills_its_seconds_or_its_batch(clock, fixed, each, at_once, near, expected):
    trial, asked = trial_of(clock, fixed, each, at_once)
    judged = []
    trial.first_run(Batch(10_000), 10_000, lambda rows: judged.append(len(rows)), lambda quality: near)
    assert asked[0] == trials.FEW
    assert trial.count == expected == len(trial.rows) == judged[-1]
    # A share that is kept is of the last number of queries alone, and short runs are repeated within it.
    assert trial.seconds == [pytest.approx(fixed + each * expected)]


def test_batches_of_one_call(clock):
    trial, asked = trial_of(clock, 1.0, 0.0, 1)
    trial.restart(Batch(100), 70, 30)
    assert asked == [30, 30, 10]
    assert trial.each == pytest.approx(3 / 70)
    trial.time(Batch(100), 70, 30)
    assert len(trial.seconds) == len(trial.other_cores) == 2
    assert trial.affordable(6.0) == 140
