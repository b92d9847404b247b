"""`compare`: what changed between two reports or two results directories, and whether it is more than noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stcli import __version__
from stcli.config import at_least, fraction
from stcli.errors import InputError, ThresholdError
from stcli.measure.compare_reports import compare_reports
from stcli.measure.compare_results import compare_results
from stcli.storage.kinds import kind_of
from stcli.storage.manifest import REPORT, RESULTS


def compare(
    before: str | Path,
    after: str | Path,
    *,
    k: int | None = None,
    min_recall: float | None = None,
    max_slowdown: float | None = None,
) -> dict[str, Any]:
    """Compare two reports of `bench`, or two results directories of `retrieve`.

    Args:
        before, after: two paths of the same kind.
        k: results of each query that are compared (results directories); default: all.
        min_recall: least recall of the planned setting after (reports), or least mean overlap (results).
        max_slowdown: largest share of the planned setting's throughput that may be lost, beyond noise (reports).

    Returns:
        Summary; every number that has a before and an after is {"before", "after", "change"}.

    Raises:
        InputError: two kinds, or something that cannot be compared.
        ThresholdError: `min_recall` or `max_slowdown` is missed; `summary` has the whole comparison.
    """
    at_least("--k", k, 1)
    for name, value in (("--min-recall", min_recall), ("--max-slowdown", max_slowdown)):
        if value is not None:
            fraction(name, value)
    kinds = [kind_of(path) for path in (before, after)]
    if kinds[0] != kinds[1] or kinds[0] not in (REPORT, RESULTS):
        raise InputError(
            f"{before} is {kinds[0]} and {after} is {kinds[1]}; expected two reports or two results directories"
        )
    first, second = Path(before), Path(after)
    if kinds[0] == REPORT:
        told, missed = compare_reports(first, second, min_recall, max_slowdown)
    else:
        if max_slowdown is not None:
            raise InputError("--max-slowdown compares reports; results directories hold no speeds")
        told, missed = compare_results(first, second, k, min_recall)
    inputs = {"before": str(before), "after": str(after)}
    summary = {"command": "compare", "version": __version__, "inputs": inputs, **told}
    if missed:
        raise ThresholdError("; ".join(missed), summary)
    return summary
