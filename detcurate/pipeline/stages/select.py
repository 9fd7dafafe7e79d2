"""The stages that follow from the scores: selection and manifest."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from detcurate.config import SelectSettings
from detcurate.ensemble.index import MEMBER_INDEX, RESULTS, Member, read_index
from detcurate.io.files import sha256_json
from detcurate.io.storage import Location
from detcurate.manifest.croissant import write_croissant
from detcurate.manifest.write import SUBSET_FILE, build_provenance, write_manifest
from detcurate.pipeline.context import Run
from detcurate.pipeline.image_similarity import labelled_lack
from detcurate.pipeline.label_error_queue import write_relabel
from detcurate.pipeline.pool_columns import column_inputs, pool_columns, requested_quotas
from detcurate.pipeline.search import (
    SEED_SET,
    builds_up,
    expected_loss,
    held_images,
    lineage,
    previous_round,
    round_budget,
    seed_set,
)
from detcurate.pipeline.stage import Stage, StageResult, output_digest
from detcurate.pipeline.tables import (
    ImagesTable,
    RelabelTable,
    RemovedTable,
    SelectionTable,
    Table,
    read_scores,
    read_selection,
)
from detcurate.select.compose import NOISE_FILTERS, PoolColumns, select
from detcurate.select.filters import pair_similarity
from detcurate.select.selection_log import SelectionLog
from detcurate.structures import ImageScores

_BUDGETS = {"num_images": "images", "num_boxes": "boxes", "cost_seconds": "cost_seconds"}
_MOST_DUPLICATES = 0.5  # a share of the pool
_logger = logging.getLogger("detcurate")
_PACKAGES = ("faiss-cpu", "numpy", "torch", "torchvision", "pycocotools", "pyarrow", "numba")


def select_stage(run: Run) -> Stage:
    """Build the stage ``select``; that of round 0 draws the seed set."""
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
    return StageResult([path], f"{len(ids):,} random images to begin with")


def _select(run: Run) -> StageResult:
    settings, scores = run.settings.select, read_scores(run)
    rows = run.pool.subset_rows(scores.image_ids)
    budget = round_budget(run)
    warning = expected_loss(run.settings, budget.limit / int(budget.costs.sum()))
    if warning:
        _logger.warning("%-9s %s", "select", warning)
    lack = labelled_lack(run) if settings.duplicate_similarity else ""
    if lack:
        how = "run --until predict with CURATE.PREDICT.EMBEDDINGS True"
        _logger.warning("%-9s images like those of the pool stay: %s; %s", "select", lack, how)
    columns, (minimums, maximums) = pool_columns(run, scores), requested_quotas(run, rows)
    log = select(
        scores,
        budget=budget,
        strategy=settings.strategy,
        seed=run.cfg.SEED,
        columns=columns,
        noise_filter=settings.noise_filter,
        noise_filter_quantile=settings.noise_filter_quantile,
        duplicate_similarity=settings.duplicate_similarity,
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
    warning = _too_alike(columns, counts["removed"].get("near_duplicate", 0) / len(scores), settings)
    if warning:
        _logger.warning("%-9s %s", "select", warning)
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in counts["removed"].items())
    summary = f"{len(log.taken):,} of {len(scores):,} images by {settings.strategy}, {budget.text} asked"
    summary += f"; left out: {left_out}" if left_out else ""
    if "budget" not in counts["removed"] and len(log.taken) < len(scores):
        summary += "; the budget is not used up"
    facts = {name: [list(pair) for pair in found.items()] for name, found in counts.items()}
    return StageResult(_write_selection(run, scores, columns, log), summary, facts)


def _too_alike(columns: PoolColumns, share: float, settings: SelectSettings) -> str:
    """Return a warning when so many are near-duplicates that the threshold may not tell images apart."""
    if share <= _MOST_DUPLICATES:
        return ""
    quantiles = pair_similarity((0.5, 0.99), embeddings=columns.embeddings, hashes=columns.hashes)
    median, near = (math.floor(value * 1e5) / 1e5 for value in quantiles)
    return (
        f"{share:.0%} of the pool are near-duplicates by CURATE.SELECT.DUPLICATE_SIMILARITY "
        f"{settings.duplicate_similarity:g}; of random pairs of images half reach {median:g}, one in a hundred "
        f"{near:g}: raise it where the pool is not that redundant"
    )


def _write_selection(run: Run, scores: ImageScores, columns: PoolColumns, log: SelectionLog) -> list[Location]:
    """Write who was taken, who was not and why, and the queue of images whose labels want a look."""
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
    return [kind.within(directory).write(table) for kind, table in tables.items()]


def manifest_stage(run: Run) -> Stage:
    """Build the stage ``manifest``."""
    settings = {"detcurate": version("detcurate"), **run.settings.manifest.model_dump(mode="json")}
    inputs = {name: output_digest(run.stage_metadata(name)) for name in ("pool", "score", "select")}
    inputs["history"] = sha256_json(_history(run))
    return Stage("manifest", run.directory("manifest"), settings, inputs, lambda: _write_manifest(run))


def _history(run: Run) -> dict[str, Any]:
    """Return the settings of the stages that led to the selection, as they were when those stages ran."""
    return {name: run.stage_metadata(name)["settings"] for name in ("pool", "train", "predict", "score", "select")}


def _write_manifest(run: Run) -> StageResult:
    selection = read_selection(run)
    members = read_index(run.directory("train") / MEMBER_INDEX)
    history = _history(run)
    chosen = history["select"]  # as it was done, whatever the config says by now
    requested = {name: chosen[key] for key, name in _BUDGETS.items() if chosen.get(key)} or {
        "fraction": chosen["fraction"]
    }
    provenance = build_provenance(
        dataset=run.pool,
        image_ids=selection.image_ids,
        config_sha256=sha256_json(history),
        seed=chosen["seed"],
        strategy=chosen["strategy"],
        requested_budget=requested,
        members=[_describe_member(member) for member in members],
        scores_sha256=run.stage_metadata("score")["outputs"][ImagesTable.FILE]["sha256"],
        versions=_versions(),
        seconds_per_image=chosen["seconds_per_image"],
        seconds_per_box=chosen["seconds_per_box"],
    )
    facts = run.stage_metadata("select")["facts"]
    steps = {name: [{"reason": reason, "images": count} for reason, count in facts[name]] for name in facts}
    provenance |= {"settings": history, "selection": steps, "search": lineage(run)}
    provenance["quarantined"] = run.pool_facts["quarantined"]
    directory = run.directory("manifest")
    written = write_manifest(
        directory, run.pool, selection.image_ids, provenance, compress=run.settings.manifest.compress
    )
    if run.settings.manifest.croissant:
        written.append(write_croissant(directory, provenance, written[0].name))
    spent = provenance["budget"]["spent"]
    summary = f"{spent['images']:,} images with {spent['boxes']:,} boxes: {written[0]}"
    queue = write_relabel(run, selection.image_ids)
    if queue is None:
        return StageResult(written, summary)
    path, counts = queue
    summary += f"; the {sum(counts.values()):,} most suspected labels: {path.name}"
    return StageResult([*written, path], summary, {"relabel": counts})


def _describe_member(member: Member) -> dict[str, Any]:
    name = {"results": Path(member.file).name} if member.dtype == RESULTS else {}
    return {**asdict(member), **name}


def subset_file(run: Run) -> Path:
    """Return the manifest's annotation file."""
    return run.directory("manifest") / (SUBSET_FILE + (".gz" if run.settings.manifest.compress else ""))


def _versions() -> dict[str, str]:
    versions = {"detcurate": version("detcurate"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
