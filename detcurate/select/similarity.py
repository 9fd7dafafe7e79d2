"""How alike the images of a pool are in general, by which a threshold for near-duplicates can be judged."""

from __future__ import annotations

import numpy as np

from detcurate.select.neighbours import unit_rows
from detcurate.select.thin import HASH_BITS

_NUM_PAIRS = 20_000


def pair_similarity(
    quantiles: tuple[float, ...], *, embeddings: np.ndarray | None, hashes: np.ndarray | None, seed: int = 0
) -> tuple[float, ...]:
    """Return quantiles of the similarity of two random images, by embedding or, without those, by hash.

    Args:
        quantiles: in [0, 1].
        embeddings: (n, D) floating, finite.
        hashes: (n,) uint64.
        seed: Of the pairs.

    Returns:
        A number for each quantile, as the similarity of :mod:`detcurate.select.thin`; none when there are no pairs.

    Example:
        >>> pair_similarity((0.5,), embeddings=None, hashes=np.array([0, 0, 0], np.uint64))
        (1.0,)
    """
    values = hashes if embeddings is None else embeddings
    if values is None or len(values) < 2:
        return ()
    draw = np.random.default_rng(seed)
    first = draw.integers(0, len(values), _NUM_PAIRS)
    second = (first + draw.integers(1, len(values), _NUM_PAIRS)) % len(values)  # another image, each as likely
    if embeddings is None:
        differing = np.ascontiguousarray(values[first] ^ values[second]).view(np.uint8).reshape(_NUM_PAIRS, -1)
        found = 1 - np.unpackbits(differing, axis=1).sum(axis=1) / HASH_BITS
    else:
        found = np.einsum("pd,pd->p", unit_rows(values[first]), unit_rows(values[second]))
    return tuple(float(value) for value in np.quantile(found, quantiles))
