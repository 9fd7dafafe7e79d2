"""Similarity of the pool's images: perceptual hashes, embeddings, planted copies, and the threshold of a duplicate."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pyarrow as pa

from detcurate.coco.image_files import image_fingerprint
from detcurate.engines import LOCAL
from detcurate.errors import DatasetError, PredictionError
from detcurate.io.files import sha256_json
from detcurate.io.parquet import DAMAGES, read_table, write_table
from detcurate.io.storage import Location, RemoteImage, fetch_ahead, image_files
from detcurate.io.workers import Progress, run_jobs
from detcurate.pipeline.context import CACHE, Run
from detcurate.pipeline.prediction_jobs import (
    EMBEDDINGS,
    Preparation,
    make_missing_shards,
    prediction_job,
    predictions_digest,
)
from detcurate.pipeline.stage import output_digest
from detcurate.predictions.shards import read_embeddings, shard_path
from detcurate.select.duplicate_threshold import DuplicateThreshold, duplicate_threshold
from detcurate.select.filters import difference_hash
from detcurate.select.neighbours import require_same_images

HASHES = "hashes.parquet"

PLANTED = "planted"
"""The folder below ``predict/`` with the embeddings of planted copies."""

AUTO = "auto"
"""The value of ``CURATE.SELECT.DUPLICATE_SIMILARITY`` that finds the threshold from the pool."""

_BLOCK = 64
_FEWEST_FOR_WORKERS = 2_000  # a worker takes a second to start
_NUM_ORIGINALS, _SEED = 100, 20
_JPEG_QUALITY, _BRIGHTER, _CROP_PX = 60, 1.15, 4


@dataclass(frozen=True)
class _Block:
    files: tuple[Path | RemoteImage, ...]


def pool_hashes(run: Run, rows: np.ndarray, *, cached_in: Run | None = None) -> np.ndarray:
    """Return the perceptual hashes of some of the pool's images, from the cache if the files are unchanged.

    Args:
        run: The run.
        rows: (n,) int64 rows of the pool.
        cached_in: The run whose cache is used, if that is not the pool's own.

    Returns:
        (n,) uint64.

    Raises:
        DatasetError: An image cannot be decoded.
    """
    paths = [run.output_dir / CACHE / HASHES]
    if cached_in is not None:
        paths.append(cached_in.output_dir / CACHE / f"labelled-{HASHES}")
    fingerprint = image_fingerprint(run.pool, run.image_root("pool"))
    image_ids = run.pool.image_ids[rows]
    for path in paths:
        known = _read_cache(path, fingerprint, image_ids)
        if known is not None:
            return known
    files = image_files(run.image_root("pool"), [run.pool.file_names[row] for row in rows.tolist()])
    blocks = [_Block(files[start : start + _BLOCK]) for start in range(0, len(files), _BLOCK)]
    num_processes = run.settings.worker_processes if len(files) > _FEWEST_FOR_WORKERS else 1
    parts = run_jobs(_hash_block, blocks, num_processes=num_processes, total=len(files), desc="hash pool", unit="image")
    hashes = np.array([found for part in parts for found in part], np.uint64)
    write_table(paths[-1], {"image_id": pa.array(image_ids), "hash": pa.array(hashes)}, {"images": fingerprint})
    return hashes


def _read_cache(path: Path, fingerprint: str, image_ids: np.ndarray) -> np.ndarray | None:
    try:
        table, described = read_table(path)
        fits = described["images"] == fingerprint and np.array_equal(table["image_id"].to_numpy(), image_ids)
        hashes: np.ndarray = table["hash"].to_numpy()
    except DAMAGES:  # an absent or damaged cache only costs time
        return None
    return hashes if fits else None


def _hash_block(block: _Block, progress: Progress) -> list[int]:
    fetch_ahead(block.files)
    hashes = [_hash(_read_image(file, cv2.IMREAD_GRAYSCALE)) for file in block.files]
    progress(len(hashes))
    return hashes


def _hash(gray: np.ndarray) -> int:
    return difference_hash(cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA))


def _read_image(file: Path | RemoteImage, flags: int) -> np.ndarray:
    """Decode an image upright, by OpenCV's flags; raises ``DatasetError`` if that fails."""
    if isinstance(file, Path):
        image: np.ndarray | None = cv2.imread(str(file), flags)
    else:
        with file.open() as stream:
            data = np.frombuffer(stream.read(), np.uint8)
        image = cv2.imdecode(data, flags) if len(data) else None
    if image is None:
        raise DatasetError(f"{file}: the image cannot be decoded. Replace it, or remove its record.")
    return image


# Planted copies


def _jpeg(image: np.ndarray) -> np.ndarray:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def _brightened(image: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.convertScaleAbs(image, alpha=_BRIGHTER))


def _cropped(image: np.ndarray) -> np.ndarray:
    border = min(_CROP_PX, min(image.shape[:2]) // 16)
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


COPIES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg": _jpeg,
    "brightened": _brightened,
    "cropped": _cropped,
}
"""Kind of planted copy -> function of an (H, W, 3) uint8 image: re-encoded, 15 % brighter, cropped by 4 px a side."""


def copied_rows(image_ids: np.ndarray) -> np.ndarray:
    """Return the rows of the up to 100 images that are copied: a seeded sample, (s,) int64, ascending."""
    count = min(len(image_ids), _NUM_ORIGINALS)
    return np.sort(np.random.default_rng(_SEED).choice(len(image_ids), count, replace=False))


def copy_settings(run: Run) -> dict[str, str]:
    """Return the settings of the stage ``predict`` for planted copies; none if it predicts none."""
    return {"CURATE.SELECT.DUPLICATE_SIMILARITY": AUTO} if _predicts_copies(run) else {}


def predict_copies(run: Run, weights: Mapping[str, tuple[Path, str]], preparation: Preparation) -> list[Location]:
    """Predict planted copies with the first member and write their embeddings; return the files.

    Args:
        run: The run; without embeddings, or with a fixed threshold, nothing is predicted.
        weights: A member's name -> its file and digest.
        preparation: How folders are prepared.
    """
    if not _predicts_copies(run) or not weights:
        return []
    from detcurate.d2.infer.cluster import predict_cluster

    folder, (first, member) = run.directory("predict") / PLANTED, next(iter(weights.items()))
    detections = folder / "detections"
    preparation.folder(
        folder, sha256_json({"answers": predictions_digest(run, run.usable_image_ids), "members": [first]})
    )
    image_ids = run.usable_image_ids[copied_rows(run.usable_image_ids)]
    job = prediction_job(run, "pool", detections, [member], image_ids, folder)
    with tempfile.TemporaryDirectory() as name:
        files, sizes = [], []
        for number, image in enumerate(_copied_images(run, image_ids)):
            for kind, copy in COPIES.items():
                files.append(str(Path(name) / f"{number}-{kind}.jpg"))
                copied = copy(image)
                sizes.append(copied.shape[1::-1])
                cv2.imwrite(files[-1], copied)
        job = dataclasses.replace(
            job, image_ids=np.arange(len(files)), file_names=tuple(files), sizes=np.array(sizes, np.int64)
        )
        # The temporary files exist on this machine only, so they are predicted here whatever the engine.
        make_missing_shards(dataclasses.replace(run, engine=LOCAL), predict_cluster, job, desc="predict copies")
    return [shard_path(one, number) for one in (folder, detections) for number in range(job.num_shards)]


def _predicts_copies(run: Run) -> bool:
    return run.settings.predict.embeddings and run.settings.select.duplicate_similarity == AUTO


def _copied_images(run: Run, image_ids: np.ndarray) -> Iterator[np.ndarray]:
    rows = run.pool.subset_rows(image_ids)
    files = image_files(run.image_root("pool"), [run.pool.file_names[row] for row in rows.tolist()])
    fetch_ahead(files)
    for file in files:
        yield _read_image(file, cv2.IMREAD_COLOR)


def _copy_shards(run: Run) -> list[str]:
    outputs = run.stage_metadata("predict")["outputs"]
    return sorted(name for name in outputs if PurePosixPath(name).parent.name == PLANTED)


def find_threshold(
    run: Run,
    image_ids: np.ndarray,
    *,
    embeddings: np.ndarray | None,
    hashes: np.ndarray | None,
    sequences: np.ndarray,
    similarity: float | None = None,
) -> DuplicateThreshold:
    """Find the similarity of near-duplicates from the pool, with the recall on planted copies.

    Args:
        run: The run.
        image_ids: (n,) int64, the scored images.
        embeddings: (n, D) floating, or None.
        hashes: (n,) uint64; used without embeddings.
        sequences: (n,) int64, the number of each image's sequence, -1 for none.
        similarity: A fixed threshold to describe instead of the one that is found.

    Raises:
        DatasetError: An image cannot be decoded.
        SelectionError: The pool has neither two sequences nor planted copies.
    """
    originals = copied_rows(image_ids)
    copies: dict[str, np.ndarray] = {}
    if embeddings is None:
        found: dict[str, list[int]] = {kind: [] for kind in COPIES}
        for image in _copied_images(run, image_ids[originals]):
            for kind, copy in COPIES.items():
                found[kind].append(_hash(cv2.cvtColor(copy(image), cv2.COLOR_BGR2GRAY)))
        copies = {kind: np.array(values, np.uint64) for kind, values in found.items()}
    elif shards := _copy_shards(run):
        parts = [read_embeddings(run.directory("predict") / name)[1] for name in shards]
        rows = np.concatenate(parts).reshape(len(originals), len(COPIES), -1)
        copies = {kind: rows[:, number] for number, kind in enumerate(COPIES)}
    return duplicate_threshold(
        embeddings=embeddings,
        hashes=hashes,
        sequences=sequences,
        copies=copies,
        originals=originals,
        similarity=similarity,
    )


# Embeddings


def vector_inputs(run: Run) -> dict[str, str]:
    """Return the digest of the embeddings or, without those, of the image files."""
    shards = embedding_shards(run)
    return {"embeddings": sha256_json(shards)} if shards else _files(run)


def embedding_shards(run: Run) -> dict[str, str]:
    """Return file -> digest of the embeddings that the stage ``predict`` wrote, in any mode."""
    outputs = run.stage_metadata("predict")["outputs"]
    return {name: output["sha256"] for name, output in outputs.items() if PurePosixPath(name).parent.name == EMBEDDINGS}


def read_pool_embeddings(run: Run, image_ids: np.ndarray) -> np.ndarray | None:
    """Read the embeddings that the stage ``predict`` wrote, (I, D) float16 by ascending id; None if there are none."""
    names = sorted(embedding_shards(run))
    if not names:
        return None
    parts = [read_embeddings(run.directory("predict") / name) for name in names]
    ids = np.concatenate([part[0] for part in parts])
    require_same_images(image_ids, ids)
    return np.concatenate([part[1] for part in parts])


def labelled_inputs(run: Run) -> dict[str, str]:
    """Return the digest of the labelled images that ranked candidates are compared with."""
    if run.labelled is None or labelled_lack(run):
        return {}
    return {"labelled": sha256_json(vector_inputs(run.labelled) if embedding_shards(run) else _files(run.labelled))}


def labelled_vectors(run: Run) -> np.ndarray | None:
    """Return the embeddings of the labelled images or, where the candidates have none, their hashes.

    Returns:
        (L, D) float16 or (L,) uint64; None for a run without labelled images, or if they cannot be compared.
    """
    other = run.labelled
    if other is None or labelled_lack(run):
        return None
    if embedding_shards(run):
        return read_pool_embeddings(other, other.usable_image_ids)
    return pool_hashes(other, other.pool.subset_rows(other.usable_image_ids), cached_in=run)


def labelled_lack(run: Run) -> str:
    """Return why candidates with embeddings cannot be compared with the labelled images; empty if they can."""
    if run.labelled is None or not embedding_shards(run):
        return ""
    try:
        predicted = run.labelled.stage_metadata("predict")
    except PredictionError:
        return "the pool is not predicted"
    if predicted["inputs"].get("train") != output_digest(run.labelled.stage_metadata("train")):
        return "the pool was predicted by another ensemble"
    return "" if embedding_shards(run.labelled) else "the pool was predicted without CURATE.PREDICT.EMBEDDINGS"


def _files(run: Run) -> dict[str, str]:
    return {"images": image_fingerprint(run.pool, run.image_root("pool"))}
