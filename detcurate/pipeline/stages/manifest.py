"""The stage ``manifest``: the selected images as a COCO file, with its provenance and the relabel queue."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from detcurate.ensemble.index import MEMBER_INDEX, RESULTS, Member, read_index
from detcurate.io.files import sha256_json
from detcurate.manifest.croissant import write_croissant
from detcurate.manifest.write import SUBSET_FILE, build_provenance, write_manifest
from detcurate.pipeline.context import Run
from detcurate.pipeline.label_error_queue import write_relabel
from detcurate.pipeline.search import lineage
from detcurate.pipeline.stage import Stage, StageResult, output_digest
from detcurate.pipeline.tables import ImagesTable, read_selection

_BUDGETS = {"num_images": "images", "num_boxes": "boxes", "cost_seconds": "cost_seconds"}
_PACKAGES = ("faiss-cpu", "numpy", "torch", "torchvision", "pycocotools", "pyarrow", "numba")


def manifest_stage(run: Run) -> Stage:
    """Return the stage ``manifest``."""
    settings = {"detcurate": version("detcurate"), **run.settings.manifest.model_dump(mode="json")}
    inputs = {name: output_digest(run.stage_metadata(name)) for name in ("pool", "score", "select")}
    inputs["history"] = sha256_json(_history(run))
    return Stage("manifest", run.directory("manifest"), settings, inputs, lambda: _write_manifest(run))


def subset_file(run: Run) -> Path:
    """Return the annotation file of the manifest."""
    return run.directory("manifest") / (SUBSET_FILE + (".gz" if run.settings.manifest.compress else ""))


def _history(run: Run) -> dict[str, Any]:
    """Return the settings that the earlier stages recorded when they ran."""
    return {name: run.stage_metadata(name)["settings"] for name in ("pool", "train", "predict", "score", "select")}


def _write_manifest(run: Run) -> StageResult:
    selection = read_selection(run)
    members = read_index(run.directory("train") / MEMBER_INDEX)
    history = _history(run)
    chosen = history["select"]  # as recorded: the config may have changed since
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
    steps = {
        name: [{"reason": reason, "images": count} for reason, count in facts[name]] for name in ("selected", "removed")
    }
    provenance |= {"settings": history, "selection": steps, "search": lineage(run)}
    if "duplicate_threshold" in facts:
        provenance["duplicate_threshold"] = facts["duplicate_threshold"]
    provenance["quarantined"] = run.pool_facts["quarantined"]
    directory = run.directory("manifest")
    written = write_manifest(
        directory, run.pool, selection.image_ids, provenance, compress=run.settings.manifest.compress
    )
    if run.settings.manifest.croissant:
        written.append(write_croissant(directory, provenance, written[0].name))
    spent = provenance["budget"]["spent"]
    summary = f"wrote {spent['images']:,} images with {spent['boxes']:,} boxes to {written[0]}"
    queue = write_relabel(run, selection.image_ids)
    if queue is None:
        return StageResult(written, summary)
    path, counts = queue
    summary += f"; {sum(counts.values()):,} possible label errors in {path.name}"
    return StageResult([*written, path], summary, {"relabel": counts})


def _describe_member(member: Member) -> dict[str, Any]:
    name = {"results": Path(member.file).name} if member.dtype == RESULTS else {}
    return {**asdict(member), **name}


def _versions() -> dict[str, str]:
    versions = {"detcurate": version("detcurate"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
