"""The stage ``select``: the images to keep, the images to remove, and the reason for each."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from detcurate.io.storage import Location
from detcurate.pipeline.context import Run
from detcurate.pipeline.image_similarity import find_threshold, labelled_lack
from detcurate.pipeline.pool_columns import column_inputs, pool_columns, requested_quotas, sequence_codes
from detcurate.pipeline.search import (
    SEED_SET,
    builds_up,
    expected_loss,
    held_images,
    previous_round,
    round_budget,
    seed_set,
)
from detcurate.pipeline.stage import Stage, StageResult, output_digest
from detcurate.pipeline.tables import RelabelTable, RemovedTable, SelectionTable, Table, read_scores
from detcurate.select.compose import NOISE_FILTERS, PoolColumns, select
from detcurate.select.duplicate_threshold import FALSE_NEIGHBOURS, DuplicateThreshold, pair_similarity
from detcurate.select.selection_log import SelectionLog
from detcurate.structures import ImageScores

DUPLICATE_THRESHOLD = "duplicate_threshold"
"""The fact of the stage that describes the threshold of ``CURATE.SELECT.DUPLICATE_SIMILARITY auto``."""

_MOST_DUPLICATES = 0.5  # a share of the pool
_logger = logging.getLogger("detcurate")


def select_stage(run: Run) -> Stage:
    """Return the stage ``select``; in round 0 of a search it draws the seed set."""
    settings = {**run.settings.select.model_dump(mode="json"), "seed": run.cfg.SEED}
    if builds_up(run):
        settings["CURATE.SEARCH"] = run.settings.search.model_dump(mode="json", exclude={"warm_start"})
    before = ("pool",) if run.round == SEED_SET else ("score", "pool")
    inputs = {name: output_digest(run.stage_metadata(name)) for name in before}
    if run.round == SEED_SET:
        return Stage("select", run.directory("select"), settings, inputs, lambda: _draw_seed_set(run))
    inputs |= column_inputs(run)
    last_round = previous_round(run)
    if last_round is not None:
        inputs["round before"] = output_digest(last_round.stage_metadata("select"))
    return Stage("select", run.directory("select"), settings, inputs, lambda: _select(run))


def _draw_seed_set(run: Run) -> StageResult:
    ids = seed_set(run)
    columns = {"rank": np.arange(1, len(ids) + 1), "image_id": ids, "image_score": np.zeros(len(ids))}
    path = SelectionTable.within(run.directory("select")).write({**columns, "reason": ["seed_set"] * len(ids)})
    return StageResult([path], f"drew {len(ids):,} random images as the seed set")


def _select(run: Run) -> StageResult:
    settings, scores = run.settings.select, read_scores(run)
    rows = run.pool.subset_rows(scores.image_ids)
    budget = round_budget(run)
    warning = expected_loss(run.settings, budget.limit / int(budget.costs.sum()))
    if warning:
        _logger.warning("select: %s", warning)
    lack = labelled_lack(run) if settings.duplicate_similarity else ""
    if lack:
        _logger.warning(
            "select: images similar to labelled ones are not removed (%s). Run the stage predict of the labelled pool "
            "with CURATE.PREDICT.EMBEDDINGS True.",
            lack,
        )
    columns, (minimums, maximums) = pool_columns(run, scores), requested_quotas(run, rows)
    similarity, threshold = _duplicate_similarity(run, scores, columns)
    log = select(
        scores,
        budget=budget,
        strategy=settings.strategy,
        seed=run.cfg.SEED,
        columns=columns,
        noise_filter=settings.noise_filter,
        noise_filter_quantile=settings.noise_filter_quantile,
        duplicate_similarity=similarity,
        sequence_gap=settings.sequence_gap,
        minimums=minimums,
        maximums=maximums,
        threshold=settings.threshold,
        num_strata=settings.num_strata,
        oversampling=settings.oversampling,
        held=held_images(run),
        num_threads=run.settings.worker_processes,
    )
    counts = {"selected": log.counts(taken=True), "removed": log.counts(taken=False)}
    warning = _duplicate_warning(columns, counts["removed"].get("near_duplicate", 0) / len(scores), similarity)
    if warning:
        _logger.warning("select: %s", warning)
    removed = ", ".join(f"{reason} {count:,}" for reason, count in counts["removed"].items())
    summary = f"kept {len(log.taken):,} of {len(scores):,} images ({settings.strategy}, budget {budget.text})"
    summary += f"; removed: {removed}" if removed else ""
    if "budget" not in counts["removed"] and len(log.taken) < len(scores):
        summary += "; the budget is not used up"
    facts: dict[str, Any] = {name: [list(pair) for pair in found.items()] for name, found in counts.items()}
    if threshold is not None:
        summary += f"; {threshold.text}"
        facts[DUPLICATE_THRESHOLD] = threshold.to_dict()
    return StageResult(_write_selection(run, scores, columns, log), summary, facts)


def _duplicate_similarity(
    run: Run, scores: ImageScores, columns: PoolColumns
) -> tuple[float, DuplicateThreshold | None]:
    """Return the similarity of a near-duplicate, and how it was found if the setting is ``auto``."""
    requested = run.settings.select.duplicate_similarity
    if not isinstance(requested, str):
        return float(requested), None
    sequences = sequence_codes(run.pool.sequences)[run.pool.subset_rows(scores.image_ids)]
    found = find_threshold(
        run, scores.image_ids, embeddings=columns.embeddings, hashes=columns.hashes, sequences=sequences
    )
    if found.false_neighbours > FALSE_NEIGHBOURS:
        _logger.warning(
            "select: %.1f %% of the images are identical to one of another sequence. Check for copied files.",
            100 * found.false_neighbours,
        )
    return found.similarity, found


def _duplicate_warning(columns: PoolColumns, share: float, similarity: float) -> str:
    """Return a warning if so many images are near-duplicates that the threshold is probably too low."""
    if share <= _MOST_DUPLICATES:
        return ""
    quantiles = pair_similarity((0.5, 0.99), embeddings=columns.embeddings, hashes=columns.hashes)
    median, near = (math.floor(value * 1e5) / 1e5 for value in quantiles)
    return (
        f"{share:.0%} of the pool are near-duplicates at CURATE.SELECT.DUPLICATE_SIMILARITY "
        f"{similarity:g}; half of random pairs of images reach {median:g}, one in a hundred "
        f"{near:g}. Raise it if the pool is less redundant."
    )


def _write_selection(run: Run, scores: ImageScores, columns: PoolColumns, log: SelectionLog) -> list[Location]:
    """Write the selected images, the removed images with reasons, and the images that the label-noise filter queued."""
    directory, selection, gone = run.directory("select"), log.selection, np.flatnonzero(log.rank == 0)
    reasons, replaced_by = np.array(log.reasons, object), log.replaced_by[gone]
    tables: dict[type[Table], Mapping[str, Any]] = {
        SelectionTable: {
            "rank": np.arange(1, len(selection) + 1),
            "image_id": selection.image_ids,
            "image_score": scores.image_score[log.taken],
            "reason": list(selection.reasons),
        },
        RemovedTable: {
            "image_id": log.image_ids[gone],
            "image_score": scores.image_score[gone],
            "reason": pa.array(reasons[log.reason_index[gone]].tolist(), pa.string()),
            "replaced_by": pa.array(replaced_by, mask=replaced_by < 0),
        },
    }
    if columns.label_error_score is not None and run.settings.select.noise_filter == "queue":
        queued = gone[reasons[log.reason_index[gone]] == NOISE_FILTERS["queue"]]
        worst_first = queued[np.argsort(-columns.label_error_score[queued], kind="stable")]
        tables[RelabelTable] = {
            "image_id": log.image_ids[worst_first],
            "label_error_score": columns.label_error_score[worst_first],
        }
    return [table.within(directory).write(content) for table, content in tables.items()]
