"""The mode ``reference`` over a pool: every member asked about the labelled boxes and the ensemble's consensus boxes.

The consensus needs the detections of all members, so this is a second step: it reads the shards of the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detcurate.answers import References, write_references
from detcurate.d2.members import MemberModels
from detcurate.d2.reference import ReferenceAnswers, reference_answers
from detcurate.d2.shards import Batch, Group, ModelKeeper, PredictionPass, ask_groups, make_shards, naming_member
from detcurate.passes import Predictions, open_predictions
from detcurate.score.associate import associate
from detcurate.score.reference import choose_references
from detcurate.storage import Location

_Boxes = dict[int, tuple[np.ndarray, np.ndarray]]
"""image_id -> (R, 4) float32 boxes and (R,) bool, whether each is labelled."""

_Answers = dict[tuple[int, int], ReferenceAnswers]
"""image_id and member -> what it says."""


@dataclass(frozen=True)
class ReferencePass:
    """All members on the reference boxes of some images, as one process sees it.

    Args:
        images: The members, the images, and where the answers go; the shards are those of the detections.
        predictions: Where the passes with the members' detections are.
        member_names: Their names there, in the order of their numbers.
        truth_boxes: (T, 4) float32, xyxy in pixels, the labels of all images without crowd regions, by image.
        truth_bounds: (I, 2) int64, the first and the end row of each image's labels.
        iou_threshold: That of the association, in (0, 1].
    """

    images: PredictionPass
    predictions: Location
    member_names: tuple[str, ...]
    truth_boxes: np.ndarray
    truth_bounds: np.ndarray
    iou_threshold: float

    @property
    def name(self) -> str:
        """What a message calls these shards."""
        return self.images.name


def run_reference_pass(job: ReferencePass, progress: Callable[[int], None], keeper: ModelKeeper | None = None) -> None:
    """Ask about every shard that is not there yet and that no other process is at; return when all are there.

    Args:
        job: What to ask.
        progress: Called with the number of images that this process has just asked about.
        keeper: Of models that outlive this call.

    Raises:
        DatasetError: An image does not decode to the size of its record.
        EnsembleError: A member cannot be used, or has no box head with a softmax.
        PredictionError: The detections cannot be read, a member's answer is not finite, or the device's memory does
            not suffice for one image.
    """
    make_shards(job.images, functools.partial(_ask_shard, job, progress), keeper)


def _ask_shard(
    job: ReferencePass, progress: Callable[[int], None], models: MemberModels, number: int, batches: list[Batch]
) -> None:
    boxes = _boxes_of(job, number)
    answers: _Answers = {}
    for found in ask_groups(models, batches, functools.partial(_ask, job, models, boxes), job.images, progress):
        answers.update(found)
    image_ids = job.images.image_ids[list(job.images.rows(number))]
    write_references(job.images.shards[number], _collect(job, image_ids.tolist(), boxes, answers), image_ids)


@functools.lru_cache(maxsize=1)
def _opened(directory: Location, member_names: tuple[str, ...]) -> Predictions:
    """Open the first step's answers, which are complete by now, once for all shards."""
    return open_predictions(directory, member_names)


def _boxes_of(job: ReferencePass, number: int) -> _Boxes:
    """Return the reference boxes of one shard's images."""
    detections, _ = _opened(job.predictions, job.member_names).read(job.images.first_shard + number)
    clusters = associate(detections, num_members=len(job.member_names), iou_threshold=job.iou_threshold)
    boxes = {}
    for row in job.images.rows(number):
        image_id, (first, end) = int(job.images.image_ids[row]), job.truth_bounds[row]
        of_image = slice(*np.searchsorted(clusters.image_ids, [image_id, image_id + 1]))
        boxes[image_id] = choose_references(
            job.truth_boxes[first:end],
            clusters.boxes[of_image],
            size=(int(job.images.sizes[row, 0]), int(job.images.sizes[row, 1])),
            iou_threshold=job.iou_threshold,
        )
    return boxes


def _ask(job: ReferencePass, models: MemberModels, boxes: _Boxes, group: Group, batch: Batch) -> _Answers:
    """Return the answers of a group of members about a batch; images without a box are not shown to them."""
    batch = [sample for sample in batch if len(boxes[sample["image_id"]][0])]
    if not batch:
        return {}
    given = [boxes[sample["image_id"]][0] for sample in batch]
    answers: _Answers = {}
    with models.inference():
        images = models.preprocess(batch)
        for number, model in group:
            with naming_member(job.images, number):
                found = reference_answers(model, batch, given, images=images)
            answers.update(((sample["image_id"], number), one) for sample, one in zip(batch, found, strict=True))
    return answers


def _collect(job: ReferencePass, image_ids: list[int], boxes: _Boxes, answers: _Answers) -> References:
    """Return the answers as columns, by image in the order given."""
    members, num_columns = range(len(job.images.members)), job.images.num_classes + 1
    asked = [image_id for image_id in image_ids if len(boxes[image_id][0])]

    def stack(name: str, width: int) -> np.ndarray:
        """(R, E, width) float32."""
        parts = [np.stack([getattr(answers[image_id, e], name) for e in members], axis=1) for image_id in asked]
        return np.concatenate([np.zeros((0, len(members), width), np.float32), *parts])

    counts = [len(boxes[image_id][0]) for image_id in asked]
    return References(
        image_ids=np.repeat(np.array(asked, np.int64), counts),
        is_truth=np.concatenate([np.zeros(0, np.bool_), *(boxes[image_id][1] for image_id in asked)]),
        given=np.concatenate([np.zeros((0, 4), np.float32), *(boxes[image_id][0] for image_id in asked)]),
        boxes=stack("boxes", 4),
        class_probs=stack("class_probs", num_columns),
    )
