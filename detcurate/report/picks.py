"""Which images the galleries show: from the columns of the pool to a few of its rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detcurate.report.records import Choice, Scores

NEAR_DUPLICATE = "near_duplicate"
SUSPICIONS = ("overlooked", "swapped", "badly_located")
TILES = 12
"""Of one gallery."""
_GROUPS, _OF_A_GROUP = 4, 4

SUSPECTED = 0.5
"""The suspicion from which on a label is called suspected."""


@dataclass(frozen=True)
class Pick:
    """The images of one gallery.

    Args:
        rows: (n,) int64, rows of the pool in the order in which they are shown.
        extent: How many that is of how many.
        group: (n,) int64, which of them belong together; all 0 where there are no groups.
    """

    rows: np.ndarray
    extent: str
    group: np.ndarray


def most_disagreed(scores: Scores) -> Pick:
    """Return the images with the highest score; ties by id."""
    return _first(np.argsort(-scores.image_score, kind="stable"))


def least_disagreed(scores: Scores, choice: Choice) -> Pick:
    """Return the images with the lowest score among those that were left out."""
    rows = np.flatnonzero(~choice.kept)
    return _first(rows[np.argsort(scores.image_score[rows], kind="stable")])


def of_floors(choice: Choice) -> Pick:
    """Return the images that a floor took, each floor in its turn, the first of each first."""
    is_floor = np.array([reason.startswith("floor ") for reason in choice.reasons], bool)
    rows = np.flatnonzero(is_floor[choice.reason] & choice.kept) if len(is_floor) else np.zeros(0, np.int64)
    rows = rows[np.argsort(choice.rank[rows])]
    turn = np.zeros(len(rows), np.int64)
    for reason in np.unique(choice.reason[rows]):
        same = choice.reason[rows] == reason
        turn[same] = np.arange(int(same.sum()))
    return _first(rows[np.lexsort((choice.rank[rows], turn))])


def near_duplicates(choice: Choice) -> Pick:
    """Return groups of an image that was kept in play and those that gave way to it, the largest groups first."""
    codes = [number for number, reason in enumerate(choice.reasons) if reason == NEAR_DUPLICATE]
    rows = np.flatnonzero(np.isin(choice.reason, codes) & (choice.because >= 0))
    keepers, counts = np.unique(choice.because[rows], return_counts=True)
    shown, group = [], []
    for number, at in enumerate(np.argsort(-counts, kind="stable")[:_GROUPS].tolist()):
        members = [int(keepers[at]), *rows[choice.because[rows] == keepers[at]].tolist()][:_OF_A_GROUP]
        shown += members
        group += [number] * len(members)
    return Pick(
        rows=np.array(shown, np.int64),
        extent=f"{len(set(group)):,} of {len(keepers):,} groups",
        group=np.array(group, np.int64),
    )


def most_suspected(scores: Scores, kind: str) -> Pick | None:
    """Return the images with a suspected label of a kind, the worst first; None where the pool has no such column."""
    column = scores.components.get(kind)
    if column is None:
        return None
    rows = np.flatnonzero(column >= SUSPECTED)
    return _first(rows[np.argsort(-column[rows], kind="stable")])


def _first(rows: np.ndarray) -> Pick:
    shown = rows[:TILES]
    return Pick(shown.astype(np.int64), f"{len(shown):,} of {len(rows):,} images", np.zeros(len(shown), np.int64))
