"""Nearest neighbours of embeddings by faiss: exact for small pools, with an inverted file for large ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np

from detcurate.errors import SelectionError

_EXACT_UP_TO = 20_000  # rows; comparing all pairs takes a few seconds up to here
_NUM_PROBES = 16
_BLOCK = 4096


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Return the rows scaled to length 1, so that their dot products are cosines; rows of zeros are unchanged.

    Args:
        embeddings: (n, D) floating, finite.

    Returns:
        (n, D) float32, contiguous.

    Example:
        >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).round(2).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    rows = np.array(embeddings, np.float32, order="C")
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        block /= np.where(norms > 0, norms, 1)
    return rows


def require_same_images(image_ids: np.ndarray, embedded_ids: np.ndarray) -> None:
    """Raise ``SelectionError`` unless the embeddings belong to the pool's images, in their order.

    Args:
        image_ids: (I,) int64, the scored pool.
        embedded_ids: (B,) int64, ascending.
    """
    if np.array_equal(image_ids, embedded_ids):
        return
    lacking, unknown = np.setdiff1d(image_ids, embedded_ids), np.setdiff1d(embedded_ids, image_ids)
    if len(lacking):
        difference = f"{len(lacking)} images have none; the first is image_id {lacking[0]}"
    elif len(unknown):
        difference = f"{len(unknown)} are of other images; the first is image_id {unknown[0]}"
    else:
        difference = "they are in another order, or an image is repeated"
    raise SelectionError(
        f"embeddings do not match the pool's {len(image_ids)} images ({difference}). "
        "Predict the pool again with CURATE.PREDICT.EMBEDDINGS True."
    )


class KeptRows:
    """The rows kept so far, searchable by similarity.

    In pools of up to 20,000 rows all pairs are compared. In larger pools only rows in the 16 nearest of about 2 √n
    cells are compared, so pairs in distant cells can be missed, less often at higher similarities.

    Args:
        units: (n, D) float32 rows of length 1: the pool.
        num_threads: Number of search threads; no effect on the result.
    """

    def __init__(self, units: np.ndarray, num_threads: int = 1) -> None:
        self._units, self._num_threads = units, num_threads
        self._index = _trained_index(units)
        self._rows = np.zeros(len(units), np.int64)

    def keep(self, rows: np.ndarray) -> None:
        """Keep more rows of the pool."""
        count = self._index.ntotal
        self._rows[count : count + len(rows)] = rows
        self._index.add(self._units[rows])

    def near(self, block: np.ndarray, similarity: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the kept rows whose cosine with each row of a block is at least ``similarity``.

        Returns:
            (b + 1,) int64, the start of each row's neighbours; (P,) int64 rows of the pool, in any order.
        """
        bound = float(np.nextafter(np.float32(similarity), np.float32(0)))  # faiss excludes the bound itself
        size = -(-len(block) // self._num_threads)
        parts = _in_threads(
            lambda part: self._index.range_search(part, bound)[::2],
            [block[start : start + size] for start in range(0, len(block), size)],
            self._num_threads,
        )
        counts = np.concatenate([np.diff(starts.astype(np.int64)) for starts, _ in parts])
        starts = np.concatenate(([0], np.cumsum(counts)))
        return starts, self._rows[np.concatenate([found for _, found in parts])]


def nearest_rows(
    units: np.ndarray, queries: np.ndarray, *, k: int, num_threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k rows with the highest cosine to each query; approximate above 20,000 rows like :class:`KeptRows`.

    Args:
        units: (n, D) float32 rows of length 1.
        queries: (q, D) float32 rows of length 1.
        k: At least 1.
        num_threads: Number of search threads; no effect on the result.

    Returns:
        (q, min(k, n)) float32 cosines, descending, and int64 rows; -1 where fewer were found.
    """
    index = _trained_index(units)
    index.add(units)
    parts = _in_threads(
        lambda block: index.search(block, min(k, len(units))),
        [queries[start : start + _BLOCK] for start in range(0, len(queries), _BLOCK)],
        num_threads,
    )
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _trained_index(units: np.ndarray) -> Any:
    num_features = units.shape[1]
    index: Any
    if len(units) <= _EXACT_UP_TO:
        return faiss.IndexFlatIP(num_features)
    num_cells = int(2 * np.sqrt(len(units)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(num_features), num_features, num_cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.seed, index.cp.spherical = 6, 1, True
    index.cp.max_points_per_centroid = 64
    index.nprobe = _NUM_PROBES
    index.train(units)
    return index


def _in_threads(search: Callable[[np.ndarray], Any], blocks: list[np.ndarray], num_threads: int) -> list[Any]:
    """Search blocks in parallel, each with one faiss thread: faiss's own threads stall on busy machines."""

    def search_alone(block: np.ndarray) -> Any:
        faiss.omp_set_num_threads(1)
        return search(block)

    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(search_alone, blocks))
