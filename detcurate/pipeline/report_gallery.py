"""The pictures of the report: of the images that its galleries show, the labels, the consensus and the votes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detcurate.coco.findings import LINK, RULES
from detcurate.coco.image_files import leads_out_by_link
from detcurate.errors import PredictionError
from detcurate.parquet import DAMAGES
from detcurate.pipeline.context import Run
from detcurate.pipeline.report_layers import (
    Objects,
    consensus_boxes,
    read_objects,
    read_votes,
    sides_of,
    truth_boxes,
    vote_text,
)
from detcurate.report.images import safe_path
from detcurate.report.picks import (
    SUSPECTED,
    SUSPICIONS,
    Pick,
    least_disagreed,
    most_disagreed,
    most_suspected,
    near_duplicates,
    of_floors,
)
from detcurate.report.records import Choice, DrawnBox, Gallery, Picture, Pool, Scores, Tile
from detcurate.report.tables import count_of
from detcurate.storage import Location


@dataclass(frozen=True)
class Pictured:
    """What the galleries show, and what they could not.

    Args:
        galleries: In order.
        pictures: Of them.
        missing: A sentence each.
        num_members: E, 0 where it is not known.
    """

    galleries: tuple[Gallery, ...]
    pictures: tuple[Picture, ...]
    missing: tuple[str, ...]
    num_members: int


@dataclass(frozen=True)
class _Source:
    """Where a picture's layers and words come from."""

    run: Run
    pool: Pool
    scores: Scores
    choice: Choice | None
    objects: Objects
    votes: Mapping[int, Sequence[DrawnBox]]


def report_galleries(run: Run, pool: Pool, scores: Scores, choice: Choice | None, *, with_votes: bool) -> Pictured:
    """Pick the images and read what there is about them.

    Args:
        run: The run; ``score`` has finished.
        pool: The pool.
        scores: Of the pool.
        choice: From the pool.
        with_votes: Whether the predictions are there.
    """
    picks = _picks(scores, choice)
    rows = np.unique(np.concatenate([pick.rows for _, pick in picks]))
    ids = pool.image_ids[rows]
    missing: list[str] = []
    objects = _read(lambda: read_objects(run, ids), "the objects", missing)
    votes = _read(lambda: read_votes(run, pool, ids), "the members' own boxes", missing) if with_votes else {}
    source = _Source(run, pool, scores, choice, objects, votes)
    galleries = tuple(
        Gallery(
            name=about.name,
            title=about.title,
            about=about.about,
            extent=pick.extent,
            tiles=tuple(_tile(source, about.name, pick, place) for place in range(len(pick.rows))),
            empty=about.empty,
        )
        for about, pick in picks
    )
    pictures = tuple(_picture(source, row) for row in rows.tolist())
    return Pictured(galleries, pictures, tuple(missing), _num_members(objects))


@dataclass(frozen=True)
class _About:
    name: str
    title: str
    about: str
    empty: str


_ABOUT = {
    about.name: about
    for about in (
        _About("most", "Most disagreed about", "The highest image scores of the pool.", "No image has a score."),
        _About("least", "Least disagreed about, left out", "The lowest image scores of those that were left out.",
               "No image was left out."),
        _About("floors", "Bought for a floor", "What a floor asked for, whatever its score; the floors in turn.",
               "No floor was asked for, or none took an image."),
        _About("duplicates", "Near-duplicates", "An image, and those that gave way to it; the largest groups.",
               "No near-duplicate was removed: thinning is off, or found none."),
        _About("overlooked", "Suspected labels: overlooked",
               "The members are confident of an object, and nothing is labelled there. The most suspicious first.",
               f"No label is suspected of this: none reaches {SUSPECTED}."),
        _About("swapped", "Suspected labels: swapped",
               "The members agree on another class than the label's. The most suspicious first.",
               f"No label is suspected of this: none reaches {SUSPECTED}."),
        _About("badly_located", "Suspected labels: badly located",
               "The members agree on another box than the label's. The most suspicious first.",
               f"No label is suspected of this: none reaches {SUSPECTED}."),
    )
}  # fmt: skip


def _picks(scores: Scores, choice: Choice | None) -> list[tuple[_About, Pick]]:
    picked: dict[str, Pick | None] = {"most": most_disagreed(scores)}
    if choice is not None:
        picked |= {"least": least_disagreed(scores, choice), "floors": of_floors(choice)}
        picked["duplicates"] = near_duplicates(choice)
    picked |= {kind: most_suspected(scores, kind) for kind in SUSPICIONS}
    return [(_ABOUT[name], pick) for name, pick in picked.items() if pick is not None]


def _read(read: Callable[[], dict[int, Any]], name: str, missing: list[str]) -> dict[int, Any]:
    try:
        return read()
    except (PredictionError, *DAMAGES) as error:
        missing.append(f"Of {name} nothing is shown: {error}")
        return {}


def _num_members(objects: Objects) -> int:
    return max((len(rows[0]["votes"]) for rows in objects.values() if rows), default=0)


def _path(run: Run, file_name: str) -> Location | None:
    """Return the file of an image; None where its name leaves the image root, or a link does that is not allowed."""
    root, allowed = run.image_root("pool"), run.policies.get(LINK, RULES[LINK].policy) != "error"
    path = safe_path(root, file_name)
    return path if path is None or allowed or not leads_out_by_link(root, file_name) else None


def _picture(source: _Source, row: int) -> Picture:
    run, pool, scores, choice = source.run, source.pool, source.scores, source.choice
    image_id, frame = int(pool.image_ids[row]), int(pool.frame_index[row])
    at = int(run.pool.subset_rows(np.array([image_id]))[0])
    better, sequence = int((scores.image_score > scores.image_score[row]).sum()), run.pool.sequences[at]
    where = "" if sequence is None else f"sequence {sequence}" + (f", frame {frame:,}" if frame >= 0 else "")
    rank = f", rank {int(choice.rank[row]):,} of the kept" if choice is not None and choice.rank[row] else ""
    objects = source.objects.get(image_id, ())
    return Picture(
        key=str(image_id),
        image_id=run.pool.original_id(at),
        file_name=run.pool.file_names[at],
        path=_path(run, run.pool.file_names[at]),
        size=(int(run.pool.widths[at]), int(run.pool.heights[at])),
        where=where,
        kept=None if choice is None else bool(choice.kept[row]),
        reason="" if choice is None else choice.reasons[int(choice.reason[row])],
        standing=f"score {scores.image_score[row]:.3f}, place {better + 1:,} of {len(pool):,}{rank}",
        truth=truth_boxes(run, at, objects),
        consensus=consensus_boxes(run, objects),
        votes=tuple(source.votes.get(image_id, ())),
    )


def _tile(source: _Source, gallery: str, pick: Pick, place: int) -> Tile:
    run, pool, choice, row = source.run, source.pool, source.choice, int(pick.rows[place])
    image_id = int(pool.image_ids[row])
    key, score = str(image_id), f"score {source.scores.image_score[row]:.3f}"
    if gallery in SUSPICIONS:
        return _suspected(run, key, gallery, source.objects.get(image_id, ()))
    if gallery == "floors" and choice is not None:
        return Tile(key, f"{choice.reasons[int(choice.reason[row])]}; {score}")
    if gallery == "duplicates" and choice is not None:
        group = int(pick.group[place])
        first = int(pick.rows[np.argmax(pick.group == group)])
        count = int((choice.because == first).sum())
        heading = f"Group {group + 1}: {count} gave way to image {_original(run, int(pool.image_ids[first]))}"
        return Tile(key, f"{'the better one' if row == first else 'gave way'}; {score}", group=heading)
    return Tile(key, f"{score}, {count_of(int(pool.num_boxes[row]), 'label')}")


def _original(run: Run, image_id: int) -> int | str:
    return run.pool.text_ids.get(image_id, image_id)


def _suspected(run: Run, key: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> Tile:
    """Return the tile of the most suspicious object of an image."""
    known = [row for row in rows if row.get(kind) is not None]
    if not known:
        return Tile(key, f"a label is suspected to be {kind.replace('_', ' ')}")
    worst = max(known, key=lambda row: row[kind])
    name, votes = run.class_names[worst["class_index"]], vote_text(run, worst["votes"])
    value = f"suspicion {worst[kind]:.2f}"
    words = {
        "overlooked": f"no label; the members see {name} ({worst['confidence']:.2f})",
        "swapped": f"labelled {name}; the members vote {votes}",
        "badly_located": f"labelled {name}; the members' box lies elsewhere",
    }
    return Tile(key, f"{words[kind]}; {value}", focus=sides_of(worst))
