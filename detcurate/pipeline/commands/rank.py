"""Images that nobody has labelled yet, ranked by the ensemble of a run: which to label next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from detcurate.coco.text import decode_top_level, open_source
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

    What is kept of an unlabelled list is chosen as of a pool, by the settings under ``CURATE.SELECT``, but for those
    that ask for labels. The stages are a run of their own below ``OUTPUT_DIR/candidates``, so they resume as every run
    does.

    Args:
        run: The run; its stage ``train`` must have finished.
        images: A COCO file; its ``images`` are read, annotations and categories that it may have are not.
        image_root: What its file names are relative to; ``None`` for the pool's.

    Returns:
        The run of the candidates; its manifest has finished.

    Raises:
        ConfigError: A setting asks for labels, or the answers of the run were imported.
        DatasetError: The list is not a COCO file, or an image cannot be used.
        PredictionError: The ensemble is not there.
    """
    _require_no_labels(run.settings)
    if is_imported(run.stage_metadata("train")):
        raise ConfigError(
            f"the ensemble must be of Detectron2 to rank candidates, got imported answers ({run.output_dir}): no "
            "member is there to be asked; import its answers to the list for a config of the list's own"
        )
    base, name = run.output_dir / CANDIDATES, images.name.removesuffix(".gz").removesuffix(".json")
    listed = base / f"{name}.json"
    own = Run(_own_config(run, base / name, listed, image_root), run.config_file, run.distributed, labelled=run)
    with output_lock(own):  # that of the run itself is not needed: nothing but its members is read
        write_bytes(listed, _unlabelled(images, run))
        claim_output_dir(own, fresh=False)
        _share_members(run, own)
        run_pipeline(own, until="manifest")
    return own


def _require_no_labels(settings: CurateSettings) -> None:
    if settings.predict.results:
        raise ConfigError(
            "CURATE.PREDICT.RESULTS must be empty to rank candidates, got "
            f"{settings.predict.results!r}: no member is there to be asked; import its answers to the list for a "
            "config of the list's own"
        )
    for name in _NEED_LABELS:
        value = getattr(settings.select, name)
        if value:
            raise ConfigError(
                f"CURATE.SELECT.{name.upper()} must be left out to rank candidates, which have no labels, got {value}"
            )
    if settings.select.strategy == "stratified_random":
        raise ConfigError("CURATE.SELECT.STRATEGY must not be stratified_random to rank candidates: it reads labels")


def _unlabelled(images: Path, run: Run) -> bytes:
    """Return the list as a COCO file with the pool's categories, so that the selection can be labelled in them."""
    listed = decode_top_level(open_source(images))
    if "images" not in listed:
        raise DatasetError(
            f"a list of candidates must be a COCO file with `images`, got none ({images}); write one record an image"
        )
    categories = run.pool.other_top_level["categories"]
    return b'{"images": %b, "annotations": [], "categories": %b}' % (bytes(listed["images"]), categories)


def _own_config(run: Run, output_dir: Path, listed: Path, image_root: Location | None) -> Any:
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.CURATE.POOL.ANNOTATIONS = str(listed.resolve())
    cfg.CURATE.POOL.FINDINGS = ("no_annotations=note", *cfg.CURATE.POOL.FINDINGS)  # which is no news of such a list
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
    cfg.CURATE.MANIFEST.RELABEL_LIMIT = 0  # without labels every object would be an overlooked one
    cfg.freeze()
    return cfg


def _share_members(run: Run, own: Run) -> None:
    """Link the members of a run into another that has none, in place of those of an earlier ensemble."""
    source, target = run.directory("train"), own.output_dir / ADDED
    members = read_index(source / MEMBER_INDEX)
    shutil.rmtree(target, ignore_errors=True)
    for member in members:
        link_or_copy(source / member.file, target / member.file)
    write_index(target / MEMBER_INDEX, members)
