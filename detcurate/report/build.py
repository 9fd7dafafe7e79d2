"""The report's files: ``results.json`` for programs, ``summary.md`` for people and pull requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detcurate.files import write_bytes, write_json

RESULTS, SUMMARY = "results.json", "summary.md"


def write_report(
    directory: Path,
    *,
    summary: Mapping[str, Any],
    table: str,
    facts: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    sections: Sequence[str] = (),
) -> list[Path]:
    """Write both files and return them.

    Args:
        directory: Where to.
        summary: Means, deviations and paired differences of the arms.
        table: The same as Markdown.
        facts: What was searched, and what was kept; every value stands in the summary's list.
        models: One row an evaluated detector: arm, seed, images, boxes, figures.
        sections: What stands below the table, Markdown.
    """
    results, text = directory / RESULTS, directory / SUMMARY
    write_json(results, {"facts": dict(facts), "arms": dict(summary), "models": list(models)})
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    document = "\n".join(
        ["# What the subset bought", "", *lines, "", table.rstrip(), *(f"\n{part}" for part in sections), ""]
    )
    write_bytes(text, document.encode())
    return [results, text]
