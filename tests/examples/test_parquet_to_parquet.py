"""The comparison of `retrieve` with memory at a toy size: a line for each turn, and one of medians."""

from __future__ import annotations

import parquet_to_parquet as example


def test_prints_the_turns_and_their_medians(tiny, capfd):
    options = ["--probes", "3", "--k", "5", "--batch-size", "50", "--turns", "1"]
    example.main([str(tiny.model), str(tiny.queries), *options])
    head, turn, medians = capfd.readouterr().out.splitlines()
    assert head.startswith("turn")
    number, memory, parquet, share = turn.split()
    assert number == "1"
    rates = [float(rate.replace(",", "")) for rate in (memory, parquet)]
    assert abs(rates[1] / rates[0] - float(share)) < 0.01 + 1 / rates[0]
    assert medians.split()[1:4] == [memory, parquet, share]
