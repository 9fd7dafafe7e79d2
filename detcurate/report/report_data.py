"""The input of the report: frozen records of columns and pictures.

Axes: I usable images of the pool, by ascending id; A boxes on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detcurate.io.storage import Location

STATES = ("complete", "interrupted", "outdated", "absent")
"""The states of a stage; the inputs of an ``outdated`` stage have changed since."""


@dataclass(frozen=True)
class StageState:
    """The state of one stage.

    Args:
        name: The stage.
        state: One of ``STATES``.
        note: Its summary, or the reason for its state; one line.
    """

    name: str
    state: str
    note: str


@dataclass(frozen=True)
class Comparison:
    """The arms that were trained and evaluated.

    Args:
        summary: The result of :func:`detcurate.evaluate.arm_comparison.summarise`.
        models: One record a detector: arm, seed, num_images, num_boxes, iterations, images_seen, figures and, if
            measured, seconds.
        table: The summary as Markdown.
        equal: Whether arms train for equal ``"iterations"`` or ``"epochs"``.
        sections: The Markdown below the table in ``summary.md``.
    """

    summary: Mapping[str, Any]
    models: Sequence[Mapping[str, Any]]
    table: str
    equal: str
    sections: Sequence[str] = ()


@dataclass(frozen=True)
class Pool:
    """The usable images of the labelled pool.

    Args:
        image_ids: (I,) int64, ascending.
        num_boxes: (I,) int64, labelled boxes of each image.
        sequence: (I,) int64, the row of ``sequence_names``, -1 for none.
        sequence_names: S texts.
        frame_index: (I,) int64, -1 for none.
        box_row: (A,) int32, the row of each box's image.
        box_side: (A,) float32, the square root of each box's area, px.
        class_names: C texts.
    """

    image_ids: np.ndarray
    num_boxes: np.ndarray
    sequence: np.ndarray
    sequence_names: tuple[str, ...]
    frame_index: np.ndarray
    box_row: np.ndarray
    box_side: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class Scores:
    """The scores of the same images, row by row.

    Args:
        image_score: (I,) float64; higher = keep first.
        components: Name -> (I,) column, of the used measures and the label-error scores.
        used: The measures that the score combines, in order.
        aggregation: The aggregation from objects to an image.
    """

    image_score: np.ndarray
    components: Mapping[str, np.ndarray]
    used: tuple[str, ...]
    aggregation: str


@dataclass(frozen=True)
class Choice:
    """The selection of the same images, row by row.

    Args:
        rank: (I,) int64, 1 for the first selected image, 0 for removed images.
        reason: (I,) int64, the row of ``reasons``.
        reasons: Texts.
        replaced_by: (I,) int64, the row of the image that replaces it, -1 for none.
    """

    rank: np.ndarray
    reason: np.ndarray
    reasons: tuple[str, ...]
    replaced_by: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(I,) bool, whether an image is selected."""
        return self.rank > 0


@dataclass(frozen=True)
class DrawnBox:
    """One box of a layer.

    Args:
        xyxy: px of the image.
        class_index: in [0, C).
        confidence: in [0, 1]; None for a label.
        note: The members' votes, the member's number, or ``crowd region``.
    """

    xyxy: tuple[float, float, float, float]
    class_index: int
    confidence: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One shown image with its layers.

    Args:
        key: A unique key.
        image_id: Its id in the annotation file.
        file_name: Its file name in the annotation file.
        path: The file; None if its name or a symbolic link leaves the image root.
        size: Width and height of the image's record, px.
        where: Its sequence and frame, or an empty text.
        kept: Whether it is selected; None before the selection.
        reason: The reason of the selection.
        standing: Its score and rank, or an empty text.
        truth: The labels.
        consensus: The clusters of the members' detections.
        votes: The members' own boxes.
    """

    key: str
    image_id: int | str
    file_name: str
    path: Location | None
    size: tuple[int, int]
    where: str
    kept: bool | None
    reason: str
    standing: str
    truth: tuple[DrawnBox, ...]
    consensus: tuple[DrawnBox, ...]
    votes: tuple[DrawnBox, ...]


@dataclass(frozen=True)
class Tile:
    """A picture's place in a gallery.

    Args:
        key: The key of the picture.
        caption: One line.
        focus: The object that the tile shows, xyxy px.
        group: The heading of the group that the tile belongs to.
    """

    key: str
    caption: str
    focus: tuple[float, float, float, float] | None = None
    group: str = ""


@dataclass(frozen=True)
class Gallery:
    """A sample of pictures with one property.

    Args:
        name: An id.
        title: A heading.
        about: The property and the order; one or two sentences.
        extent: The number shown and the number available, as text.
        tiles: The sample.
        empty: The text without tiles.
    """

    name: str
    title: str
    about: str
    extent: str
    tiles: tuple[Tile, ...]
    empty: str


@dataclass(frozen=True)
class ReportData:
    """The whole input of a report; parts that a run does not have are None.

    Args:
        title: The run's name.
        facts: Name -> text about the run.
        stages: The stages in order.
        missing: Parts that cannot be shown, with the reasons; a sentence each.
        class_names: C texts.
        comparison: The comparison of the arms.
        pool: The pool.
        scores: The scores of the pool.
        choice: The selection from the pool.
        histograms: Field -> value -> ``before`` and ``after``, as in the provenance.
        galleries: The galleries in order.
        pictures: The pictures of the galleries.
        num_members: E.
        provenance: The provenance of the manifest.
        config: The run's config as YAML.
        commands: Title and command line of commands that repeat and check the run.
    """

    title: str
    facts: Mapping[str, str]
    stages: tuple[StageState, ...]
    missing: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    comparison: Comparison | None = None
    pool: Pool | None = None
    scores: Scores | None = None
    choice: Choice | None = None
    histograms: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    galleries: tuple[Gallery, ...] = ()
    pictures: tuple[Picture, ...] = ()
    num_members: int = 0
    provenance: Mapping[str, Any] | None = None
    config: str = ""
    commands: tuple[tuple[str, str], ...] = ()

    @property
    def unfinished(self) -> tuple[StageState, ...]:
        """The stages that are not complete."""
        return tuple(stage for stage in self.stages if stage.state != "complete")
