"""The stage ``pool``: render the pool if configured, read it, and check its labels and images."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.image_files import ImageFinding, examine_images, image_fingerprint, log_image_findings
from detcurate.coco.validation.findings import FindingLog, describe_errors
from detcurate.errors import DatasetError
from detcurate.io.files import sha256_file, write_bytes, write_json
from detcurate.io.safe_loading import shown
from detcurate.pipeline.context import CACHE, Run
from detcurate.pipeline.stage import Stage, StageResult
from detcurate.synthetic import write_dataset

_SHOWN = 3
BAD_IMAGES = "bad-images.txt"
"""The list of the invalid images that stopped a run, below ``CACHE``."""

_logger = logging.getLogger("detcurate")


def pool_stage(run: Run) -> Stage:
    """Return the stage ``pool``."""
    settings: dict[str, Any] = {
        "bad_images": run.settings.pool.bad_images,
        "findings": dict(run.policies),
    }
    inputs = {}
    if run.is_rendered:
        settings["render"] = run.settings.render.model_dump(mode="json")
    else:
        for part, dataset in (("pool", run.pool), ("evaluation", run.evaluation)):
            inputs[f"{part}.annotations"] = sha256_file(run.annotations(part))
            inputs[f"{part}.images"] = image_fingerprint(dataset, run.image_root(part))
    return Stage("pool", run.directory("pool"), settings, inputs, lambda: _prepare_pool(run))


def require_same_classes(pool: CocoDataset, evaluation: CocoDataset) -> None:
    """Raise ``DatasetError`` unless both files declare the same categories."""
    ours = dict(zip(pool.category_ids.tolist(), pool.class_names, strict=True))
    theirs = dict(zip(evaluation.category_ids.tolist(), evaluation.class_names, strict=True))
    if ours != theirs:
        raise DatasetError(
            f"{evaluation.path}: the categories differ from the pool's (got {theirs}; {pool.path} has {ours})."
        )


def _prepare_pool(run: Run) -> StageResult:
    if run.is_rendered:
        _render(run)
    require_same_classes(run.pool, run.evaluation)
    bad = {part: _check_images(run, part) for part in ("pool", "evaluation")}
    if bad["evaluation"] or (bad["pool"] and run.settings.pool.bad_images == "stop"):
        raise DatasetError(_describe_bad(run, bad["pool"] + bad["evaluation"], only_pool=not bad["evaluation"]))
    facts = {
        "pool": _count(run.pool),
        "evaluation": _count(run.evaluation),
        "class_names": list(run.pool.class_names),
        "quarantined": [asdict(image) for image in bad["pool"]],
    }
    path = run.directory("pool") / "pool.json"
    write_json(path, facts)
    rendered = [run.annotations("pool"), run.annotations("evaluation")] if run.is_rendered else []
    quarantined = f"; {len(bad['pool'])} images quarantined (pool/pool.json)" if bad["pool"] else ""
    summary = (
        f"{len(run.pool):,} images with {run.pool.num_boxes:,} boxes of {len(run.pool.class_names)} classes; "
        f"evaluation on {len(run.evaluation):,} images{quarantined}"
    )
    return StageResult([path, *rendered], summary, {"quarantined": len(bad["pool"])})


def _render(run: Run) -> None:
    for part, name in (("pool", "train"), ("evaluation", "val")):
        config = run.synthetic(part)
        if not run.annotations(part).exists():
            with tqdm(total=config.num_images, desc=f"render {part}", unit="image", dynamic_ncols=True) as bar:
                write_dataset(run.directory("pool"), config, name=name, progress=bar.update)


def _check_images(run: Run, part: str) -> list[ImageFinding]:
    dataset = getattr(run, part)
    num_processes = run.settings.worker_processes if len(dataset) > 2_000 else 1  # starting a worker takes a second
    cache = run.output_dir / CACHE / f"images-{part}.json"
    found = examine_images(
        dataset, run.image_root(part), num_processes=num_processes, desc=f"check {part}", cache=cache
    )
    log = FindingLog(run.policies)
    log_image_findings([finding for finding in found if finding.is_usable], log)
    errors = [finding for finding in log.findings() if finding.policy == "error"]
    if errors:
        raise DatasetError(describe_errors(errors, dataset.path))
    for finding in (*dataset.findings, *log.findings()):
        if finding.policy != "note":
            _logger.warning("pool: %s: %s", dataset.path.name, finding.sentence())
    return [finding for finding in found if not finding.is_usable]


def _describe_bad(run: Run, bad: list[ImageFinding], *, only_pool: bool) -> str:
    """Return the message for invalid images that stop the run; it names a file with all of them if there are many."""
    lines = [f"{shown(image.file_name)} (image_id {image.image_id}): {image.reason}" for image in bad]
    listed, more = "; ".join(lines[:_SHOWN]), ""
    if len(bad) > _SHOWN:
        path = run.output_dir / CACHE / BAD_IMAGES
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
        more = f"; and {len(bad) - _SHOWN} more, all in {path}"
    advice = "Fix them, or set CURATE.POOL.BAD_IMAGES quarantine to exclude them." if only_pool else "Fix them."
    return f"{len(bad)} images do not decode to the size of their records: {listed}{more}. {advice}"


def _count(dataset: CocoDataset) -> dict[str, Any]:
    return {"annotations_sha256": dataset.sha256, "num_images": len(dataset), "num_boxes": dataset.num_boxes}
