"""What is checked of a COCO file's images and categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detcurate.coco.fast import ABSENT_ID
from detcurate.coco.findings import FindingLog, describe_errors
from detcurate.errors import DatasetError
from detcurate.untrusted import is_absolute, leads_out

LARGEST_EXACT_FLOAT = 2**53
"""Above it, floats are not all integers."""


def check_categories(path: Path, ids: np.ndarray, names: Sequence[str], log: FindingLog) -> np.ndarray:
    """Return the rows of the categories to keep, by ascending id.

    Raises:
        DatasetError: There is none.
    """
    rows = _unique_rows(path, "category", ids, log)
    kept_names = Counter(names[row] for row in rows.tolist())
    twice = [name for name, count in kept_names.items() if count > 1]
    log.add_many(
        "duplicate_category_name",
        range(len(twice)),
        lambda at: f"category names must be unique, got {twice[at]!r} twice",
    )
    ascending = ids[rows]
    if len(ascending) and (ascending[0] != 1 or (np.diff(ascending) != 1).any()):
        shown = ", ".join(map(str, ascending[:12])) + (", …" if len(ascending) > 12 else "")
        log.add("category_id_gap", f"category ids are not 1 to {len(ascending)} but {shown}")
    return rows


def check_images(
    path: Path, positions: np.ndarray, ids: np.ndarray, file_names: Sequence[str], log: FindingLog
) -> np.ndarray:
    """Return the rows of the images to keep, by ascending id.

    Raises:
        DatasetError: There is none.
    """
    rows = _unique_rows(path, "image", ids, log)
    check_large(log, "images", positions, ids)
    names = [file_names[row] for row in rows.tolist()]
    counts = Counter(names)
    if len(counts) < len(names):
        twice = [name for name, count in counts.items() if count > 1]
        log.add_many(
            "duplicate_file_name",
            range(len(twice)),
            lambda at: f"{counts[twice[at]]} images have the file_name {twice[at]!r}",
        )
    for code, is_wrong in (("absolute_file_name", is_absolute), ("escaping_file_name", leads_out)):
        wrong = [row for row in rows.tolist() if is_wrong(file_names[row])]
        log.add_many(
            code,
            wrong,
            lambda row: (
                f"images[{positions[row]}].file_name must be relative and stay inside the image root, got "
                f"{file_names[row]!r} (id {ids[row]})"
            ),
        )
    return rows


def _unique_rows(path: Path, name: str, ids: np.ndarray, log: FindingLog) -> np.ndarray:
    """Return the rows by ascending id, the first of each."""
    if not len(ids):
        errors = [finding for finding in log.findings() if finding.policy == "error"]
        if errors:
            raise DatasetError(describe_errors(errors, path))
        raise DatasetError(f"the annotation file must have at least one {name}, got none ({path}); name another file")
    order = np.argsort(ids, kind="stable")
    first = np.ones(len(ids), bool)
    first[1:] = np.diff(ids[order]) != 0
    again = np.unique(ids[order[~first]])
    if len(again):
        shown = ", ".join(map(str, again[:3])) + (", …" if len(again) > 3 else "")
        example = f"{name} ids must be unique, got {shown} more than once"
        log.add(f"duplicate_{name}_id", example, int((~first).sum()))
    return order[first]


def check_large(log: FindingLog, name: str, positions: np.ndarray, ids: np.ndarray) -> None:
    """Report the ids that a reader of floats would mix up; ``ABSENT_ID`` is none."""
    large = np.flatnonzero(((ids > LARGEST_EXACT_FLOAT) | (ids < -LARGEST_EXACT_FLOAT)) & (ids != ABSENT_ID))
    log.add_many("large_id", large, lambda row: f"{name}[{positions[row]}].id is {ids[row]}, above 2^53")
