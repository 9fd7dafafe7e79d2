"""The galleries of the report: which images they show, with labels, consensus and votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detcurate.coco.image_files import leads_out_by_link
from detcurate.coco.validation.findings import LINK, RULES
from detcurate.errors import PredictionError
from detcurate.io.parquet import DAMAGES
from detcurate.io.storage import Location
from detcurate.pipeline.context import Run
from detcurate.pipeline.object_table import SIDES, ObjectsTable
from detcurate.predictions.store import open_predictions, read_members
from detcurate.report.page_tables import count_of
from detcurate.report.pictures import (
    LABEL_ERRORS,
    SUSPECTED,
    Pick,
    least_disagreed,
    most_disagreed,
    most_suspected,
    near_duplicates,
    of_minimums,
    safe_path,
)
from detcurate.report.report_data import Choice, DrawnBox, Gallery, Picture, Pool, Scores, Tile

_SHOWN_COLUMNS = ("image_id", "kind", "annotation_id", *SIDES, "class_index", "confidence", "votes", *LABEL_ERRORS)
_LEAST_CONFIDENCE, _LEAST_VOTE = 0.3, 0.3
_MOST_CLUSTERS, _MOST_VOTES = 40, 200

Objects = Mapping[int, Sequence[Mapping[str, Any]]]
"""image_id -> its rows of the table of objects."""


def read_objects(run: Run, ids: np.ndarray) -> dict[int, list[dict[str, Any]]]:
    """Return the objects of some images, by image; none in the mode ``dense``, which has no table of objects."""
    table = ObjectsTable.within(run.directory("score"))
    if not table.exists():
        return {}
    found: dict[int, list[dict[str, Any]]] = {}
    for row in table.rows(ids, names=_SHOWN_COLUMNS).to_pylist():
        found.setdefault(row["image_id"], []).append(row)
    return found


def read_votes(run: Run, pool: Pool, ids: np.ndarray) -> dict[int, list[DrawnBox]]:
    """Return the members' own boxes on some images; shards are blocks of equally many images by ascending id."""
    directory = run.directory("predict")
    predictions = open_predictions(directory, read_members(directory))
    found: dict[int, list[DrawnBox]] = {}
    if not predictions.prediction_sets:  # the mode dense keeps no boxes
        return found
    size = len(predictions.read(0)[1])
    places = np.searchsorted(pool.image_ids, ids) // size
    for index in np.unique(places).tolist():
        detections, _ = predictions.read(int(index))
        rows = np.isin(detections.image_ids, ids) & (detections.scores >= _LEAST_VOTE)
        shown = detections.take(rows)
        for row in np.argsort(-shown.scores, kind="stable").tolist():
            boxes = found.setdefault(int(shown.image_ids[row]), [])
            if len(boxes) < _MOST_VOTES:
                xyxy = tuple(float(side) for side in shown.boxes[row])
                note = f"member {int(shown.member[row])}"
                boxes.append(DrawnBox(xyxy, int(shown.class_index[row]), float(shown.scores[row]), note))  # type: ignore[arg-type]
    return found


def truth_boxes(run: Run, at: int, rows: Sequence[Mapping[str, Any]]) -> tuple[DrawnBox, ...]:
    """Return the labels of the pool's row ``at``, with the votes from the image's objects."""
    first, last = np.searchsorted(run.pool.image_index, [at, at + 1])
    of_label = {row["annotation_id"]: vote_text(run, row["votes"]) for row in rows if row["kind"] == "ground_truth"}
    boxes = []
    for number in range(int(first), int(last)):
        note = "crowd region" if run.pool.iscrowd[number] else of_label.get(int(run.pool.annotation_ids[number]), "")
        xyxy = tuple(float(side) for side in run.pool.boxes[number])
        boxes.append(DrawnBox(xyxy, int(run.pool.class_index[number]), None, note))  # type: ignore[arg-type]
    return tuple(boxes)


def consensus_boxes(run: Run, rows: Sequence[Mapping[str, Any]]) -> tuple[DrawnBox, ...]:
    """Return the clusters with a confidence of 0.3 or more, the most confident first."""
    clusters = [row for row in rows if row["kind"] == "cluster" and row["confidence"] >= _LEAST_CONFIDENCE]
    clusters.sort(key=lambda row: -row["confidence"])
    return tuple(
        DrawnBox(sides_of(row), row["class_index"], row["confidence"], vote_text(run, row["votes"]))
        for row in clusters[:_MOST_CLUSTERS]
    )


def vote_text(run: Run, votes: Sequence[int]) -> str:
    """Return the members' votes as text, the most frequent class first."""
    names = {-1: "no box", len(run.class_names): "background", **dict(enumerate(run.class_names))}
    counted = Counter(names[vote] for vote in votes)
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))


def sides_of(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return an object's box, xyxy px."""
    x1, y1, x2, y2 = (float(row[side]) for side in SIDES)
    return x1, y1, x2, y2


@dataclass(frozen=True)
class Pictured:
    """The galleries with their pictures.

    Args:
        galleries: The galleries in order.
        pictures: The pictures they show.
        missing: Parts that cannot be shown, a sentence each.
        num_members: E; 0 if unknown.
    """

    galleries: tuple[Gallery, ...]
    pictures: tuple[Picture, ...]
    missing: tuple[str, ...]
    num_members: int


@dataclass(frozen=True)
class _Source:
    """The data that a picture's layers and texts come from."""

    run: Run
    pool: Pool
    scores: Scores
    choice: Choice | None
    objects: Objects
    votes: Mapping[int, Sequence[DrawnBox]]


def report_galleries(run: Run, pool: Pool, scores: Scores, choice: Choice | None, *, with_votes: bool) -> Pictured:
    """Choose the images of each gallery and read their objects and votes.

    Args:
        run: The run; ``score`` has finished.
        pool: The pool.
        scores: The scores of the pool.
        choice: The selection from the pool.
        with_votes: Whether the predictions exist.
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
        _About("most", "Most disagreement", "The images with the highest scores.", "No image has a score."),
        _About("least", "Least disagreement, removed", "The removed images with the lowest scores.",
               "No image was removed."),
        _About("minimums", "Selected for minimum quotas",
               "Images that a minimum quota selected whatever their score, one of each quota in turn.",
               "No minimum quota is set, or none selected an image."),
        _About("duplicates", "Near-duplicates",
               "The largest groups: the image with the highest score, then the images that it replaces.",
               "No near-duplicate was removed: DUPLICATE_SIMILARITY is off, or no image reaches it."),
        _About("missing_label", "Possible label errors: missing label",
               "The members are confident of an object where nothing is labelled. Highest score first.",
               f"No image has a score of {SUSPECTED} or more for this error."),
        _About("wrong_class", "Possible label errors: wrong class",
               "The members agree on another class than the label's. Highest score first.",
               f"No image has a score of {SUSPECTED} or more for this error."),
        _About("inaccurate_box", "Possible label errors: inaccurate box",
               "The members agree on another box than the label's. Highest score first.",
               f"No image has a score of {SUSPECTED} or more for this error."),
    )
}  # fmt: skip


def _picks(scores: Scores, choice: Choice | None) -> list[tuple[_About, Pick]]:
    picked: dict[str, Pick | None] = {"most": most_disagreed(scores)}
    if choice is not None:
        picked |= {"least": least_disagreed(scores, choice), "minimums": of_minimums(choice)}
        picked["duplicates"] = near_duplicates(choice)
    picked |= {kind: most_suspected(scores, kind) for kind in LABEL_ERRORS}
    return [(_ABOUT[name], pick) for name, pick in picked.items() if pick is not None]


def _read(read: Callable[[], dict[int, Any]], name: str, missing: list[str]) -> dict[int, Any]:
    try:
        return read()
    except (PredictionError, *DAMAGES) as error:
        missing.append(f"The galleries do not show {name}: {error}")
        return {}


def _num_members(objects: Objects) -> int:
    return max((len(rows[0]["votes"]) for rows in objects.values() if rows), default=0)


def _path(run: Run, file_name: str) -> Location | None:
    """Return the file of an image; None if its name or a forbidden symbolic link leaves the image root."""
    root, allowed = run.image_root("pool"), run.policies.get(LINK, RULES[LINK].policy) != "error"
    path = safe_path(root, file_name)
    return path if path is None or allowed or not leads_out_by_link(root, file_name) else None


def _picture(source: _Source, row: int) -> Picture:
    run, pool, scores, choice = source.run, source.pool, source.scores, source.choice
    image_id, frame = int(pool.image_ids[row]), int(pool.frame_index[row])
    at = int(run.pool.subset_rows(np.array([image_id]))[0])
    better, sequence = int((scores.image_score > scores.image_score[row]).sum()), run.pool.sequences[at]
    where = "" if sequence is None else f"sequence {sequence}" + (f", frame {frame:,}" if frame >= 0 else "")
    rank = f", rank {int(choice.rank[row]):,} in the selection" if choice is not None and choice.rank[row] else ""
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
        standing=f"score {scores.image_score[row]:.3f}, rank {better + 1:,} of {len(pool):,} in the pool{rank}",
        truth=truth_boxes(run, at, objects),
        consensus=consensus_boxes(run, objects),
        votes=tuple(source.votes.get(image_id, ())),
    )


def _tile(source: _Source, gallery: str, pick: Pick, place: int) -> Tile:
    run, pool, choice, row = source.run, source.pool, source.choice, int(pick.rows[place])
    image_id = int(pool.image_ids[row])
    key, score = str(image_id), f"score {source.scores.image_score[row]:.3f}"
    if gallery in LABEL_ERRORS:
        return _suspected(run, key, gallery, source.objects.get(image_id, ()))
    if gallery == "minimums" and choice is not None:
        return Tile(key, f"{choice.reasons[int(choice.reason[row])]}; {score}")
    if gallery == "duplicates" and choice is not None:
        group = int(pick.group[place])
        first = int(pick.rows[np.argmax(pick.group == group)])
        count = int((choice.replaced_by == first).sum())
        heading = (
            f"Group {group + 1}: image {_original(run, int(pool.image_ids[first]))} replaces {count_of(count, 'image')}"
        )
        return Tile(key, f"{'highest score' if row == first else 'replaced'}; {score}", group=heading)
    return Tile(key, f"{score}, {count_of(int(pool.num_boxes[row]), 'label')}")


def _original(run: Run, image_id: int) -> int | str:
    return run.pool.text_ids.get(image_id, image_id)


def _suspected(run: Run, key: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> Tile:
    """Return the tile of the object with the highest label-error score of an image."""
    known = [row for row in rows if row.get(kind) is not None]
    if not known:
        return Tile(key, f"possible label error: {kind.replace('_', ' ')}")
    worst = max(known, key=lambda row: row[kind])
    name, votes = run.class_names[worst["class_index"]], vote_text(run, worst["votes"])
    value = f"label-error score {worst[kind]:.2f}"
    texts = {
        "missing_label": f"not labelled; the members detect {name} ({worst['confidence']:.2f})",
        "wrong_class": f"labelled {name}; the members vote {votes}",
        "inaccurate_box": f"labelled {name}; the members agree on another box",
    }
    return Tile(key, f"{texts[kind]}; {value}", focus=sides_of(worst))
