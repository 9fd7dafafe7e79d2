"""The report's files: ``index.html`` for people, ``results.json`` for programs, ``summary.md`` for a pull request."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.evaluate.arm_comparison import COMPARED
from detcurate.evaluate.summary import plain
from detcurate.io.files import write_bytes, write_json
from detcurate.manifest.write import BOX_SIZE_EDGES
from detcurate.report.figures_arms import arm_figures
from detcurate.report.figures_pool import (
    box_size_figure,
    count_figure,
    score_box_figure,
    score_figures,
    sequence_figure,
)
from detcurate.report.page import PageParts, gallery_figures, render
from detcurate.report.page_tables import (
    Table,
    ap_table,
    class_ap_table,
    cost_table,
    count_of,
    kept_table,
    mean_and_std,
    mean_costs,
    percent,
    reason_table,
    to_csv,
)
from detcurate.report.pictures import encode
from detcurate.report.report_data import Choice, Comparison, ReportData
from detcurate.report.svg import Drawing
from detcurate.report.verdict import Claim, Verdict, signed, span, verdict

PAGE, RESULTS, SUMMARY, DATA = "index.html", "results.json", "summary.md", "data"
VERSION = 2
"""The version of ``results.json``: raised when a key is removed or changes its meaning, not when one is added."""

_OWN_FIELDS = ("classes", "box_size", "sequence")
_MOST_FIELDS, _MOST_VALUES = 8, 64


def write_report(directory: Path, data: ReportData) -> list[Path]:
    """Write the report and return its files, ``index.html`` last.

    Args:
        directory: The directory of the report.
        data: The content of the report.
    """
    found = verdict(data.comparison)
    parts = _parts(data, found)
    data = replace(data, missing=(*data.missing, *_not_shown(data, parts)))
    tables = [*parts.arm_tables, *parts.pool_tables]
    tables += [figure.table for figure in (*parts.arm_figures, *parts.pool_figures)]
    shutil.rmtree(directory / DATA, ignore_errors=True)  # tables of an earlier report
    written = []
    for table in {table.name: table for table in tables}.values():
        written.append(directory / DATA / f"{table.name}.csv")
        write_bytes(written[-1], to_csv(table))
    write_json(directory / RESULTS, results(data, found))
    write_bytes(directory / SUMMARY, summary_text(data, found).encode())
    write_bytes(directory / PAGE, render(data, parts))
    return [*written, directory / RESULTS, directory / SUMMARY, directory / PAGE]


def results(data: ReportData, found: Verdict) -> dict[str, Any]:
    """Return the content of ``results.json``; its schema is in docs/explanation/report.md."""
    comparison = data.comparison
    return {
        "version": VERSION,
        "title": data.title,
        "facts": dict(data.facts),
        "stages": [{"name": stage.name, "state": stage.state, "note": stage.note} for stage in data.stages],
        "missing": list(data.missing),
        "verdict": {
            "headline": found.headline,
            "kind": found.tone,
            "claims": [_claim(claim) for claim in found.claims],
        },
        "arms": dict(comparison.summary) if comparison else {"arms": {}, "differences": {}},
        "costs": mean_costs(comparison) if comparison else {},
        "models": [dict(model) for model in comparison.models] if comparison else [],
        "selection": _selection(data),
        "histograms": {field: dict(counts) for field, counts in data.histograms.items()},
        "galleries": gallery_figures(data.galleries),
    }


def summary_text(data: ReportData, found: Verdict) -> str:
    """Return ``summary.md``."""
    lines = ["# Results of the subset", "", f"**{found.headline}**", ""]
    lines += [f"- {name}: {plain(value)}" for name, value in data.facts.items()]
    for stage in data.unfinished:
        note = f", {plain(stage.note)}" * bool(stage.note)
        lines.append(f"- not finished: the stage {stage.name} is {stage.state}{note}")
    lines += [f"- missing: {plain(sentence)}" for sentence in data.missing]
    if data.comparison:
        lines += ["", data.comparison.table.rstrip(), *(f"\n{section}" for section in data.comparison.sections)]
    return "\n".join([*lines, ""])


def _claim(claim: Claim) -> dict[str, Any]:
    return {
        "other": claim.other,
        "kind": claim.kind,
        "num_seeds": claim.num_seeds,
        "mean": claim.mean,
        "interval_seeds": claim.over_seeds and list(claim.over_seeds),
        "interval_seeds_images": claim.over_images and list(claim.over_images),
    }


def _selection(data: ReportData) -> dict[str, Any] | None:
    pool, choice = data.pool, data.choice
    if pool is None or choice is None:
        return None
    return {
        "images": {"before": len(pool), "after": int(choice.kept.sum())},
        "boxes": {"before": int(pool.num_boxes.sum()), "after": int(pool.num_boxes[choice.kept].sum())},
        "reasons": [dict(zip(("decision", "reason", "images"), row, strict=True)) for row in _reasons(choice)],
    }


def _parts(data: ReportData, found: Verdict) -> PageParts:
    comparison = data.comparison if data.comparison and data.comparison.models else None
    tiles = tuple(tile for gallery in data.galleries for tile in gallery.tiles)
    encoded, thumbs = encode(data.pictures, tiles)
    makers = (ap_table, class_ap_table, cost_table)
    return PageParts(
        verdict=found,
        cards=_cards(data, found),
        arm_tables=[make(comparison) for make in makers] if comparison else [],
        pool_tables=_pool_tables(data),
        arm_figures=arm_figures(comparison, found.claims) if comparison else [],
        pool_figures=_pool_figures(data),
        encoded=encoded,
        thumbs=thumbs,
    )


def _not_shown(data: ReportData, parts: PageParts) -> list[str]:
    """Return one sentence that names the images that cannot be shown, with the reasons; none if all can."""
    problems = [(one.file_name, parts.encoded[one.key].problem) for one in data.pictures]
    problems = [pair for pair in problems if pair[1]]
    if not problems:
        return []
    named = "; ".join(f"{name}, {problem}" for name, problem in problems[:3])
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return [f"{count_of(len(problems), 'image')} of the galleries cannot be shown: {named}{more}"]


def _pool_tables(data: ReportData) -> list[Table]:
    tables = [reason_table(_reasons(data.choice))] if data.choice is not None else []
    if "classes" in data.histograms:
        tables.append(kept_table("classes", "Boxes by class", "class", data.histograms["classes"]))
    if sizes := data.histograms.get("box_size"):  # the provenance sorts them by name
        by_size = {size: sizes[size] for size in BOX_SIZE_EDGES if size in sizes}
        tables.append(kept_table("box_size", "Boxes by COCO's sizes", "size", by_size))
    return tables


def _pool_figures(data: ReportData) -> list[Drawing]:
    figures: list[Drawing | None] = []
    pool, scores, choice, counts = data.pool, data.scores, data.choice, data.histograms
    if len(counts.get("classes", {})) > 1:
        figures.append(count_figure("class-counts", "class", counts["classes"], unit="boxes"))
    if pool is not None and choice is not None and len(pool.box_side):
        figures.append(box_size_figure(pool, choice))
    for number, field in enumerate(_metadata(counts)):
        figures.append(count_figure(f"metadata-{number}", field, counts[field], unit="images"))
    if pool is not None and choice is not None:
        figures.append(sequence_figure(pool, choice))
    if pool is not None and scores is not None and len(pool):
        first, *others = score_figures(scores, choice)
        figures += [first, score_box_figure(pool, scores, choice), *others]
    return [figure for figure in figures if figure is not None]


def _metadata(counts: Mapping[str, Any]) -> list[str]:
    fields = [field for field in counts if field not in _OWN_FIELDS and 1 < len(counts[field]) <= _MOST_VALUES]
    return fields[:_MOST_FIELDS]


def _reasons(choice: Choice) -> list[tuple[str, str, int]]:
    rows = []
    for decision, is_kept in (("selected", True), ("removed", False)):
        for number, reason in enumerate(choice.reasons):
            count = int(((choice.reason == number) & (choice.kept == is_kept)).sum())
            if count:
                rows.append((decision, reason, count))
    return rows


def _cards(data: ReportData, found: Verdict) -> list[tuple[str, str, str]]:
    cards = []
    pool, choice = data.pool, data.choice
    if pool is not None and choice is not None:
        for name, counts in (("Images selected", np.ones(len(pool), np.int64)), ("Boxes selected", pool.num_boxes)):
            kept, total = int(counts[choice.kept].sum()), int(counts.sum())
            cards.append((name, percent(kept / total if total else None), f"{kept:,} of {total:,}"))
    if data.comparison is None or not data.comparison.models:
        return cards
    curated = data.comparison.summary["arms"].get(COMPARED)
    if curated:
        seeds = f"{curated['num_seeds']} seed{'s' if curated['num_seeds'] > 1 else ''}"
        cards.append(("AP of the subset", mean_and_std(curated["figures"]["AP"]), f"in percent, {seeds}"))
    for claim in found.claims[:2]:
        if claim.mean is not None:
            about = f"95 % interval\n{span(claim.over_seeds)}" if claim.over_seeds else "one seed, no interval"
            name = {"full": "whole pool", "random": "random images"}.get(claim.other, claim.other)
            cards.append((f"vs {name}", f"{signed(claim.mean)} AP", about))
    return [*cards, *_saving(data.comparison)]


def _saving(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return the card with the images that training on the subset saves; none without the arms curated and full."""
    costs = mean_costs(comparison)
    if COMPARED not in costs or "full" not in costs:
        return []
    seen, full = costs[COMPARED]["images_seen"], costs["full"]["images_seen"]
    if seen is None or not full:
        return []
    about = "equal iterations for every arm" if comparison.equal == "iterations" else "images seen in training"
    return [("Training saved", percent(max(1 - seen / full, 0.0)), about)]
