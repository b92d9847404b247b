from types import SimpleNamespace

import numpy as np
import pytest

from stcli.measure import against


class Batch:
    """Some queries, as far as a trial looks at them."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def take(self, part):
        return Batch(len(range(self.count)[part]))


@pytest.mark.parametrize(
    ("fixed", "each", "least", "most"),
    [
        (3.0, 0.0001, 10_000, 10_000),  # shares its work, as Faiss Flat: the whole batch is hardly slower than 32
        (0.0, 0.005, 300, 600),  # shares nothing: about three seconds
        (0.0, 1e-6, 10_000, 10_000),
        (0.0, 0.5, 100, 100),  # too slow for the time: as few as a mean needs
    ],
)
def test_a_batch_grows_until_it_fills_its_seconds(monkeypatch, fixed, each, least, most):
    now = [0.0]
    monkeypatch.setattr(against, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def search(queries):
        now[0] += fixed + each * len(queries)
        return np.zeros((len(queries), 1), np.int64)

    run = object.__new__(against.Against)
    run.batch_size = 10_000
    trial = against.Trial("somebody", "a setting", search, True)
    run._warm_up(trial, Batch(10_000))
    assert least <= trial.count <= most
    assert len(trial.rows) == trial.count
