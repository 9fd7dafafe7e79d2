"""What tells images that look alike: the embeddings that the stage ``predict`` left, or hashes of the files."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from detcurate.coco.images import image_fingerprint
from detcurate.embeddings import read_embeddings
from detcurate.errors import PredictionError
from detcurate.files import sha256_json
from detcurate.pipeline.asking import EMBEDDINGS
from detcurate.pipeline.context import Run
from detcurate.pipeline.hashes import pool_hashes
from detcurate.select.neighbours import require_same_images
from detcurate.stages import output_digest


def vector_inputs(run: Run) -> dict[str, str]:
    """Return the digest of what tells images that look alike: their embeddings or, without those, their files."""
    shards = embedding_shards(run)
    return {"embeddings": sha256_json(shards)} if shards else _files(run)


def embedding_shards(run: Run) -> dict[str, str]:
    """Return file -> digest of the embeddings that the stage ``predict`` left, in whatever mode."""
    outputs = run.marker("predict")["outputs"]
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
        predicted = run.labelled.marker("predict")
    except PredictionError:
        return "the pool is not predicted"
    if predicted["inputs"].get("train") != output_digest(run.labelled.marker("train")):
        return "the pool was predicted by another ensemble"
    return "" if embedding_shards(run.labelled) else "the pool was predicted without CURATE.PREDICT.EMBEDDINGS"


def _files(run: Run) -> dict[str, str]:
    return {"images": image_fingerprint(run.pool, run.image_root("pool"))}
