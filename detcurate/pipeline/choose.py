"""The stages that follow from the scores: selection and manifest."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.coco.croissant import write_croissant
from detcurate.coco.manifest import SUBSET_FILE, build_provenance, write_manifest
from detcurate.ensemble import LEDGER, RESULTS, Member, read_ledger
from detcurate.files import sha256_json
from detcurate.pipeline.context import Run
from detcurate.pipeline.score import IMAGES, read_scores
from detcurate.pipeline.tables import read_columns, write_columns
from detcurate.select.budget import resolve_budget
from detcurate.select.rank import select
from detcurate.stages import Stage, StageResult, output_digest
from detcurate.structures import Selection

SELECTION = "selection.parquet"
_PACKAGES = ("numpy", "torch", "torchvision", "pycocotools", "pyarrow", "numba")


def select_stage(run: Run) -> Stage:
    """Build the stage ``select``."""
    settings = {**run.settings.select.model_dump(mode="json"), "seed": run.cfg.SEED}
    inputs = {"score": output_digest(run.marker("score"))}
    return Stage("select", run.directory("select"), settings, inputs, lambda: _select(run))


def budget(run: Run, num_images: int) -> int:
    """Return how many of ``num_images`` to keep."""
    settings = run.settings.select
    if settings.num_images:
        return resolve_budget(num_images, fraction=None, count=settings.num_images)
    return resolve_budget(num_images, fraction=settings.fraction, count=None)


def _select(run: Run) -> StageResult:
    scores = read_scores(run)
    selection = select(
        scores, budget=budget(run, len(scores)), strategy=run.settings.select.strategy, seed=run.cfg.SEED
    )
    path = run.directory("select") / SELECTION
    columns = {
        "rank": np.arange(1, len(selection) + 1),
        "image_id": selection.image_ids,
        "image_score": scores.image_score[np.searchsorted(scores.image_ids, selection.image_ids)],
        "reason": list(selection.reasons),
    }
    write_columns(path, columns)
    return StageResult([path], f"{len(selection):,} of {len(scores):,} images by {run.settings.select.strategy}")


def manifest_stage(run: Run) -> Stage:
    """Build the stage ``manifest``."""
    settings = {"detcurate": version("detcurate"), **run.settings.manifest.model_dump(mode="json")}
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "select")}
    inputs["history"] = sha256_json(_history(run))
    return Stage("manifest", run.directory("manifest"), settings, inputs, lambda: _write_manifest(run))


def _history(run: Run) -> dict[str, Any]:
    """Return the settings of the stages that led to the selection, as they were when those stages ran."""
    return {name: run.marker(name)["settings"] for name in ("pool", "train", "predict", "score", "select")}


def _write_manifest(run: Run) -> StageResult:
    selection = read_selection(run)
    members = read_ledger(run.directory("train") / LEDGER)
    settings, history = run.settings.select, _history(run)
    chosen = history["select"]  # as it was done, whatever the config says by now
    asked = {"images": chosen["num_images"]} if chosen["num_images"] else {"fraction": chosen["fraction"]}
    provenance = build_provenance(
        dataset=run.pool,
        image_ids=selection.image_ids,
        config_sha256=sha256_json(history),
        seed=chosen["seed"],
        strategy=chosen["strategy"],
        budget_asked=asked,
        members=[_describe_member(member) for member in members],
        scores_sha256=run.marker("score")["outputs"][IMAGES]["sha256"],
        versions=_versions(),
        seconds_per_image=settings.seconds_per_image,
        seconds_per_box=settings.seconds_per_box,
    )
    provenance = {**provenance, "settings": history, "quarantined": run.pool_facts["quarantined"]}
    directory = run.directory("manifest")
    written = write_manifest(
        directory, run.pool, selection.image_ids, provenance, compress=run.settings.manifest.compress
    )
    if run.settings.manifest.croissant:
        written.append(write_croissant(directory, provenance, written[0].name))
    spent = provenance["budget"]["spent"]
    summary = f"{spent['images']:,} images with {spent['boxes']:,} boxes: {written[0]}"
    return StageResult(written, summary)


def _describe_member(member: Member) -> dict[str, Any]:
    name = {"results": Path(member.file).name} if member.storage == RESULTS else {}
    return {**asdict(member), **name}


def subset_file(run: Run) -> Path:
    """Return the manifest's annotation file."""
    return run.directory("manifest") / (SUBSET_FILE + (".gz" if run.settings.manifest.compress else ""))


def read_selection(run: Run) -> Selection:
    """Read ``selection/selection.parquet``."""
    table = read_columns(run.directory("select") / SELECTION)
    return Selection(table["image_id"], tuple(table["reason"].tolist()))


def _versions() -> dict[str, str]:
    versions = {"detcurate": version("detcurate"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
