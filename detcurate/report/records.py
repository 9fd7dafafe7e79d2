"""What the pipeline hands to the report: frozen records of columns and of the pictures that are shown.

Axes: I images of the pool that can be used, by ascending id; A boxes on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detcurate.io.storage import Location

STATES = ("complete", "interrupted", "outdated", "absent")
"""What may have become of a stage: ``outdated`` was made from what has since been made again."""


@dataclass(frozen=True)
class StageState:
    """What became of one stage.

    Args:
        name: Of the stage.
        state: One of ``STATES``.
        note: What it did, or why it does not count; one line.
    """

    name: str
    state: str
    note: str


@dataclass(frozen=True)
class Comparison:
    """The arms that were trained and evaluated.

    Args:
        summary: What :func:`detcurate.evaluate.arm_comparison.summarise` returned.
        models: One row an evaluated detector: arm, seed, num_images, num_boxes, iterations, images_seen, figures and,
            where it was measured, seconds.
        table: The summary as Markdown.
        equal: What the arms have in common: ``"iterations"`` or ``"epochs"``.
        sections: What stands below the table in ``summary.md``, Markdown.
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
        components: Name -> (I,) column, of the measures that are used and of the suspicions.
        used: The measures that make the score, in order.
        aggregation: How objects became an image's component.
    """

    image_score: np.ndarray
    components: Mapping[str, np.ndarray]
    used: tuple[str, ...]
    aggregation: str


@dataclass(frozen=True)
class Choice:
    """What became of the same images, row by row.

    Args:
        rank: (I,) int64, 1 for the first that was kept, 0 for those that were not.
        reason: (I,) int64, the row of ``reasons``.
        reasons: Texts.
        replaced_by: (I,) int64, the row of the better image that one gave way to, -1 for none.
    """

    rank: np.ndarray
    reason: np.ndarray
    reasons: tuple[str, ...]
    replaced_by: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(I,) bool."""
        return self.rank > 0


@dataclass(frozen=True)
class DrawnBox:
    """One box of a layer.

    Args:
        xyxy: px of the image.
        class_index: in [0, C).
        confidence: in [0, 1]; None for a label.
        note: The members' votes, the member's number, or whether it is a crowd region.
    """

    xyxy: tuple[float, float, float, float]
    class_index: int
    confidence: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One image that is shown, with its layers.

    Args:
        key: Of the image, unique.
        image_id: As the annotation file has it.
        file_name: Likewise.
        path: The file; None where the name or a link leaves the image root.
        size: Width and height of the image's record, px.
        where: Its sequence and frame, or nothing.
        kept: Whether it was; None when nothing was selected.
        reason: Why.
        standing: Its score and rank, or nothing.
        truth: The labels.
        consensus: What the members agree on.
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
        key: Of the picture.
        caption: One line.
        focus: The object that it is about, xyxy px.
        group: Tiles of one group stand together; a text for the heading.
    """

    key: str
    caption: str
    focus: tuple[float, float, float, float] | None = None
    group: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures that have something in common.

    Args:
        name: An id.
        title: A heading.
        about: What is shown, and in which order; a sentence or two.
        extent: How many are shown of how many.
        tiles: The sample that is shown.
        empty: What to say when there is none.
    """

    name: str
    title: str
    about: str
    extent: str
    tiles: tuple[Tile, ...]
    empty: str


@dataclass(frozen=True)
class ReportData:
    """All that a report is made of; what a run does not have is None.

    Args:
        title: The run's name.
        facts: What was searched, and how; a text each.
        stages: In order.
        missing: What could not be shown, and why; a sentence each.
        class_names: C texts.
        comparison: The arms.
        pool: The pool.
        scores: Of the pool.
        choice: From the pool.
        histograms: Field -> value -> ``before`` and ``after``, as in the provenance.
        galleries: In order.
        pictures: Those that the galleries show.
        num_members: E.
        provenance: What the manifest says of itself.
        config: The run's config as YAML.
        commands: What repeats and checks the run; a title and a command line each.
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
