"""Perceptual hashes of the pool's images, computed in worker processes and remembered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pyarrow as pa

from detcurate.coco.image_files import image_fingerprint
from detcurate.errors import DatasetError, PredictionError
from detcurate.io.files import sha256_json
from detcurate.io.parquet import DAMAGES, read_table, write_table
from detcurate.io.storage import RemoteImage, fetch_ahead, image_files
from detcurate.io.workers import Progress, run_jobs
from detcurate.pipeline.context import CACHE, Run
from detcurate.pipeline.prediction_jobs import EMBEDDINGS
from detcurate.pipeline.stage import output_digest
from detcurate.predictions.shards import read_embeddings
from detcurate.select.filters import difference_hash
from detcurate.select.neighbours import require_same_images

HASHES = "hashes.parquet"
_BLOCK = 64
_FEWEST_FOR_WORKERS = 2_000  # a worker takes a second to start


@dataclass(frozen=True)
class _Block:
    files: tuple[Path | RemoteImage, ...]


def pool_hashes(run: Run, rows: np.ndarray, *, cached_in: Run | None = None) -> np.ndarray:
    """Return the hashes of some of the pool's images, from the cache when the files are as they were.

    Args:
        run: The run.
        rows: (n,) int64 rows of the pool.
        cached_in: The run that remembers them, where that is not the pool's own.

    Returns:
        (n,) uint64.

    Raises:
        DatasetError: An image cannot be read.
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
    except DAMAGES:  # absent or damaged: it only saves time
        return None
    return hashes if fits else None


def _hash_block(block: _Block, progress: Progress) -> list[int]:
    hashes = []
    fetch_ahead(block.files)
    for file in block.files:
        gray = _read_gray(file)
        if gray is None:
            raise DatasetError(f"an image must decode, got one that does not ({file}); mend it")
        hashes.append(difference_hash(cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA)))
    progress(len(hashes))
    return hashes


def _read_gray(file: Path | RemoteImage) -> np.ndarray | None:
    """Return the image in shades of gray, upright; None when it does not decode."""
    if isinstance(file, Path):
        return cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    with file.open() as stream:
        data = np.frombuffer(stream.read(), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if len(data) else None


def vector_inputs(run: Run) -> dict[str, str]:
    """Return the digest of what tells images that look alike: their embeddings or, without those, their files."""
    shards = embedding_shards(run)
    return {"embeddings": sha256_json(shards)} if shards else _files(run)


def embedding_shards(run: Run) -> dict[str, str]:
    """Return file -> digest of the embeddings that the stage ``predict`` left, in whatever mode."""
    outputs = run.stage_metadata("predict")["outputs"]
    return {name: output["sha256"] for name, output in outputs.items() if PurePosixPath(name).parent.name == EMBEDDINGS}


def read_pool_embeddings(run: Run, image_ids: np.ndarray) -> np.ndarray | None:
    """Read the embeddings that the stage ``predict`` left, (I, D) float16 by ascending id; None when it left none."""
    names = sorted(embedding_shards(run))
    if not names:
        return None
    parts = [read_embeddings(run.directory("predict") / name) for name in names]
    ids = np.concatenate([part[0] for part in parts])
    require_same_images(image_ids, ids)
    return np.concatenate([part[1] for part in parts])


def labelled_inputs(run: Run) -> dict[str, str]:
    """Return the digest of what tells which of ranked candidates look like images that are labelled already."""
    if run.labelled is None or labelled_lack(run):
        return {}
    return {"labelled": sha256_json(vector_inputs(run.labelled) if embedding_shards(run) else _files(run.labelled))}


def labelled_vectors(run: Run) -> np.ndarray | None:
    """Return the embeddings or, where the candidates have none, the hashes of the images that are labelled already.

    Returns:
        (L, D) float16 or (L,) uint64; None for a run without such images, or when nothing is known of them.
    """
    other = run.labelled
    if other is None or labelled_lack(run):
        return None
    if embedding_shards(run):
        return read_pool_embeddings(other, other.usable_image_ids)
    return pool_hashes(other, other.pool.subset_rows(other.usable_image_ids), cached_in=run)


def labelled_lack(run: Run) -> str:
    """Say why candidates with embeddings cannot be compared with the labelled images; empty when they can be."""
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
