"""The help of a command with its options in sections, in the order in which they are thought of."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

INPUT = "--id-column --embedding-column --embedding-version --bad-rows --max-bad-fraction"

SECTIONS: dict[str, dict[str, str]] = {
    "build-index": {
        "Input": f"{INPUT} --item-tower",
        "Filter": "--feature-columns --small-features --filter-bytes --bloom-fpr --preset --bloom-bits --bloom-hashes",
        "Search": "--metric --clusters --scale --seed",
        "Output": "--output --keep-columns --overwrite --dry-run",
    },
    "pack-model": {
        "Embeddings": "--embedding-dtype --embeddings --id-column --embedding-column",
        "Scoring": "--overarch --overarch-columns --overarch-cache --tower --allow-model-code --value-model"
        " --value-models",
        "Output": "--output --shards --overwrite --dry-run",
    },
    "update": {
        "Change": "--upsert --delete --compact",
        "Input": "--id-column --embedding-column --item-tower --bad-rows --max-bad-fraction",
        "Output": "--output --overwrite --dry-run",
    },
    "retrieve": {
        "Input": f"{INPUT} --limit --task-embeddings --candidates-column --query-item-column --allow-model-code",
        "Filter": "--filter-column --filter --exclude-column --exclude-items --only-items --item-id-column --verify "
        "--filter-scope",
        "Search": "--k --k-column --target-recall --probes --exact --calibration --rescore --seed",
        "Scoring": "--overarch --value-model --value-model-column --combine --max-per --distinct-by --min-score",
        "Output": "--output --columns --item-columns --score-dtype --explain --explode --part-rows"
        " --resume --overwrite --dry-run",
        "Checks": "--audit --min-recall --max-short-fraction",
    },
    "bench": {
        "Input": "--id-column --embedding-column --filter-column --sample",
        "Search": "--k --target-recall --probes --batch-size --repeat --seed",
        "Truth": "--items --item-id-column --item-embedding-column --truth --truth-column --relevant-column"
        " --min-recall",
        "Comparison": "--against --compare-at --price-per-hour",
        "Output": "--output --overwrite",
    },
}
"""Options of each section of a command; all others are in the last one, `Run`."""

NAME_WIDTH = 30
"""Columns of the longest name that has its text beside it, not below."""


class SectionedCommand(TyperCommand):
    """A command whose help has the sections of `SECTIONS`, if there are any for it."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options of each section."""
        sections = SECTIONS.get(self.name or "")
        if sections is None:
            super().format_options(ctx, formatter)
            return
        arguments: list[tuple[str, str]] = []
        options: dict[str, tuple[str, str]] = {}
        for item in self.get_params(ctx):
            record = item.get_help_record(ctx)
            if record is not None and item.param_type_name == "argument":
                arguments.append(record)
            elif record is not None:
                options[next(name for name in item.opts if name.startswith("--"))] = record
        width = min(max(len(name) for name, _ in options.values()), NAME_WIDTH)
        parts = {"Arguments": arguments}
        parts |= {title: [options.pop(name) for name in names.split()] for title, names in sections.items()}
        parts["Run"] = list(options.values())
        for title, records in parts.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in records], col_max=NAME_WIDTH)
