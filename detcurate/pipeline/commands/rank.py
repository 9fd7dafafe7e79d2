"""``detcurate rank``: score unlabelled images with the ensemble of a run and select those to label next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from detcurate.coco.records import decode_top_level
from detcurate.coco.text import open_source
from detcurate.config import CurateSettings
from detcurate.ensemble.index import MEMBER_INDEX, read_index, write_index
from detcurate.errors import ConfigError, DatasetError
from detcurate.io.files import link_or_copy, write_bytes
from detcurate.io.storage import Location
from detcurate.pipeline.context import ADDED, CANDIDATES, Run
from detcurate.pipeline.imported_members import is_imported
from detcurate.pipeline.runner import run_pipeline
from detcurate.pipeline.workspace import claim_output_dir, output_lock

_NEED_LABELS = ("num_boxes", "class_minimums", "class_maximums", "empty_minimum")


def rank_candidates(run: Run, images: Path, image_root: Location | None = None) -> Run:
    """Score a list of images with the ensemble of a run, and select those to label first.

    The settings under ``CURATE.SELECT`` apply, except those that need labels. The stages run in a directory of their
    own below ``OUTPUT_DIR/candidates`` and resume like every run.

    Args:
        run: The run; its stage ``train`` must have finished.
        images: A COCO file; only its ``images`` are read.
        image_root: The folder of its images; ``None`` for the pool's.

    Returns:
        The run of the candidates, with a finished manifest.

    Raises:
        ConfigError: A setting needs labels, or the run uses imported predictions.
        DatasetError: The list is not a COCO file, or an image is invalid.
        PredictionError: The ensemble does not exist.
    """
    _require_no_labels(run.settings)
    if is_imported(run.stage_metadata("train")):
        raise ConfigError(
            f"{run.output_dir}: imported predictions cannot rank new images, because there are no members to run. "
            "Import predictions for the list, with a config of its own."
        )
    base, name = run.output_dir / CANDIDATES, images.name.removesuffix(".gz").removesuffix(".json")
    listed = base / f"{name}.json"
    candidates = Run(
        _candidate_config(run, base / name, listed, image_root), run.config_file, run.distributed, labelled=run
    )
    with output_lock(candidates):  # the run itself is only read
        write_bytes(listed, _unlabelled(images, run))
        claim_output_dir(candidates, fresh=False)
        _share_members(run, candidates)
        run_pipeline(candidates, until="manifest")
    return candidates


def _require_no_labels(settings: CurateSettings) -> None:
    if settings.predict.results:
        raise ConfigError(
            f"CURATE.PREDICT.RESULTS: imported predictions cannot rank new images (got {settings.predict.results!r}), "
            "because there are no members to run. Import predictions for the list, with a config of its own."
        )
    for name in _NEED_LABELS:
        value = getattr(settings.select, name)
        if value:
            raise ConfigError(
                f"CURATE.SELECT.{name.upper()}: candidates have no labels (got {value}). Remove it to rank them."
            )
    if settings.select.strategy == "stratified_random":
        raise ConfigError(
            "CURATE.SELECT.STRATEGY: candidates have no labels (got stratified_random). Set another one to rank them."
        )


def _unlabelled(images: Path, run: Run) -> bytes:
    """Return the list as a COCO file with the pool's categories, so that the selection can be labelled in them."""
    listed = decode_top_level(open_source(images))
    if "images" not in listed:
        raise DatasetError(f"{images}: not a COCO file with `images`. Write one record for each image.")
    categories = run.pool.other_top_level["categories"]
    return b'{"images": %b, "annotations": [], "categories": %b}' % (bytes(listed["images"]), categories)


def _candidate_config(run: Run, output_dir: Path, listed: Path, image_root: Location | None) -> Any:
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.CURATE.POOL.ANNOTATIONS = str(listed.resolve())
    cfg.CURATE.POOL.FINDINGS = ("no_annotations=note", *cfg.CURATE.POOL.FINDINGS)  # expected of unlabelled images
    cfg.CURATE.POOL.IMAGE_ROOT = str((image_root or run.image_root("pool")).resolve())
    cfg.CURATE.EVALUATION.ANNOTATIONS = str(run.annotations_place("evaluation").resolve())
    cfg.CURATE.EVALUATION.IMAGE_ROOT = str(run.image_root("evaluation").resolve())
    if run.settings.storage.root:
        cfg.CURATE.STORAGE.ROOT = str((run.storage_root / CANDIDATES / output_dir.name).resolve())
    cfg.CURATE.RENDER.NUM_IMAGES = 0
    cfg.CURATE.ENSEMBLE.NUM_RUNS = 0
    cfg.CURATE.SEARCH.SCHEME = "none"
    cfg.CURATE.SEARCH.WARM_START = False
    cfg.CURATE.SELECT.NOISE_FILTER = "off"
    cfg.CURATE.MANIFEST.RELABEL_LIMIT = 0  # without labels every object would be a missing label
    cfg.freeze()
    return cfg


def _share_members(run: Run, candidates: Run) -> None:
    """Link the members of a run into the run of the candidates, replacing those of an earlier ensemble."""
    source, target = run.directory("train"), candidates.output_dir / ADDED
    members = read_index(source / MEMBER_INDEX)
    shutil.rmtree(target, ignore_errors=True)
    for member in members:
        link_or_copy(source / member.file, target / member.file)
    write_index(target / MEMBER_INDEX, members)
