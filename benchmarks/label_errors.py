#!/usr/bin/env python
"""Measure how well each measure and label-error score finds the label errors planted in a rendered pool.

Reads the OUTPUT_DIR of a finished run on a rendered pool. For each kind of error it prints the probability that a wrong
label scores above a correct one (area under the ROC curve, AUROC; 0.5 is chance, ties count half). A label has its own
measures, and the highest value of the clusters nearest to it, 0 for none. A missing box has the highest value of the
clusters with an IoU of at least 0.5, 0 for none, and is compared with the clusters that overlap no error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import rankdata

from detcurate.predictions.store import read_members, read_predictions
from detcurate.score.label_errors import LABEL_ERRORS
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.structures import Detections
from detcurate.structures.boxes import box_iou, xywh_to_xyxy

KINDS = ("wrong_class", "shifted_boxes", "spurious_boxes", "missing_boxes")
OF_LABELS = (*LABEL_MEASURES, "wrong_class", "inaccurate_box")
OF_CLUSTERS = (*MEASURES, "missing_label")
COUNTS = ("num_objects", "num_labels")
_SAME_OBJECT = 0.5

Columns = dict[str, np.ndarray]
Place = tuple[int, np.ndarray]  # image_id and (1, 4) xyxy


def box_of(bbox: list[float]) -> np.ndarray:
    """Return a COCO box as (1, 4) xyxy."""
    return xywh_to_xyxy(np.array([bbox]))


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the probability that a positive is above a negative, ties counting half (Mann and Whitney 1947)."""
    ranks = rankdata(np.concatenate((positives, negatives)))[: len(positives)]
    return float((ranks.mean() - (len(positives) + 1) / 2) / len(negatives))


def read_columns(path: Path) -> Columns:
    """Read a Parquet file's numbers, with NaN for null, and -1 for an annotation_id that is null."""
    table = pq.read_table(path)
    columns = {}
    for name in table.column_names:
        if name in ("votes", "class_name"):
            continue
        column = table[name].combine_chunks()
        columns[name] = column.fill_null(-1).to_numpy() if name == "annotation_id" else np.asarray(column.to_pandas())
    return columns


def label_values(labels: Columns, clusters: Columns) -> Columns:
    """Return the values of each label: its own measures, and the highest of the clusters nearest to it."""
    values = {name: labels[name] for name in OF_LABELS if name in labels}
    order = np.argsort(labels["annotation_id"])
    matched = clusters["annotation_id"] >= 0
    rows = order[np.searchsorted(labels["annotation_id"], clusters["annotation_id"][matched], sorter=order)]
    for name in (name for name in OF_CLUSTERS if name in clusters):
        highest = np.zeros(len(order))
        np.maximum.at(highest, rows, clusters[name][matched])
        values[name] = highest
    return values


def label_table(labels: Columns, clusters: Columns, damaged: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return measure -> kind -> AUROC of wrong labels against correct ones."""
    sound = ~np.isin(labels["annotation_id"], np.concatenate(list(damaged.values())))
    table: dict[str, dict[str, float]] = {}
    for name, column in label_values(labels, clusters).items():
        table[name] = {
            kind: auroc(column[np.isin(labels["annotation_id"], ids)], column[sound]) for kind, ids in damaged.items()
        }
    return table


def clusters_on(place: Place, clusters: Columns) -> np.ndarray:
    """Return the rows of the clusters with an IoU of at least 0.5 with a box of an image."""
    here = np.flatnonzero(clusters["image_id"] == place[0])
    boxes = np.column_stack([clusters[side][here] for side in ("x1", "y1", "x2", "y2")])
    found: np.ndarray = here[box_iou(boxes, place[1])[:, 0] >= _SAME_OBJECT]
    return found


def missing_table(clusters: Columns, missing: list[np.ndarray], shifted: list[np.ndarray]) -> dict[str, float]:
    """Return measure -> AUROC of missing boxes against the clusters that overlap no error.

    Args:
        clusters: The columns.
        missing: The rows of the clusters on each missing box.
        shifted: The rows of the clusters on the true box of each shifted label; they are excluded.
    """
    is_sound = np.ones(len(clusters["image_id"]), bool)
    is_sound[np.concatenate([*missing, *shifted])] = False
    return {
        name: auroc(np.array([clusters[name][rows].max(initial=0.0) for rows in missing]), clusters[name][is_sound])
        for name in (*OF_CLUSTERS, "confidence")
        if name in clusters
    }


def image_table(images: Columns, images_with: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return component -> kind -> AUROC of the images with such an error against those without errors."""
    sound = ~np.isin(images["image_id"], np.concatenate(list(images_with.values())))
    names = [name for name in ("image_score", *OF_CLUSTERS, *OF_LABELS, *COUNTS) if name in images]
    return {
        name: {
            kind: auroc(images[name][np.isin(images["image_id"], ids)], images[name][sound])
            for kind, ids in images_with.items()
        }
        for name in names
    }


def objectlab(output: Path, labels: Columns, damaged: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return the AUROC of cleanlab's ObjectLab with the last member's detections, as it uses one detector.

    Its score of missing labels is one per predicted box, so only the other two scores are compared.
    """
    from cleanlab.object_detection import rank

    predictions_directory = output / "predict"
    last = read_members(predictions_directory)[-1:]
    detections = Detections.concatenate([part for part, _ in read_predictions(predictions_directory, last)])
    image_ids, order = np.unique(labels["image_id"]), np.argsort(labels["image_id"], kind="stable")
    truth, found = [], []
    for image_id in image_ids.tolist():
        rows = order[labels["image_id"][order] == image_id]
        boxes = np.column_stack([labels[side][rows] for side in ("x1", "y1", "x2", "y2")]).astype(np.float64)
        truth.append({"bboxes": boxes, "labels": labels["class_index"][rows]})
        own = detections.take(detections.image_ids == image_id)
        by_class = np.empty(detections.num_classes, dtype=object)
        for c in range(detections.num_classes):
            of_class = own.take(own.class_index == c)
            by_class[c] = np.column_stack((of_class.boxes, of_class.scores)).astype(np.float64)
        found.append(by_class)
    sound = ~np.isin(labels["annotation_id"], np.concatenate(list(damaged.values())))
    table: dict[str, dict[str, float]] = {}
    for name, score in (
        ("wrong_class", rank.compute_swap_box_scores),
        ("inaccurate_box", rank.compute_badloc_box_scores),
    ):
        label_error_score = np.zeros(len(order))
        label_error_score[order] = -np.nan_to_num(np.concatenate(score(labels=truth, predictions=found)), nan=1.0)
        table[f"ObjectLab {name}"] = {
            kind: auroc(label_error_score[np.isin(labels["annotation_id"], ids)], label_error_score[sound])
            for kind, ids in damaged.items()
        }
    return table


def markdown(title: str, table: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> str:
    """Return a table with a row per measure and a column per kind."""
    lines = [f"| {title} | " + " | ".join(f"{kind} ({counts[kind]})" for kind in KINDS) + " |", "|---|" + "---:|" * 4]
    for name, row in table.items():
        cells = [f"{row[kind]:.3f}" if kind in row else "" for kind in KINDS]
        lines.append(
            f"| `{name}`{' (label_error_score)' if name in LABEL_ERRORS else ''} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def report(output: Path) -> str:
    """Return the tables of objects and images of a run."""
    objects = read_columns(output / "score" / "objects.parquet")
    images = read_columns(output / "score" / "images.parquet")
    defects = json.loads((output / "pool" / "train-defects.json").read_text())
    is_label = objects["kind"] == "ground_truth"
    labels = {name: column[is_label] for name, column in objects.items()}
    clusters = {name: column[~is_label] for name, column in objects.items()}
    image_of = dict(zip(labels["annotation_id"].tolist(), labels["image_id"].tolist(), strict=True))

    damaged = {
        "wrong_class": np.array([record["annotation_id"] for record in defects["wrong_class"]]),
        "shifted_boxes": np.array([record["annotation_id"] for record in defects["shifted_boxes"]]),
        "spurious_boxes": np.array(defects["spurious_boxes"]),
    }
    missing = [(record["image_id"], box_of(record["bbox"])) for record in defects["missing_boxes"]]
    shifted = [(image_of[record["annotation_id"]], box_of(record["true_bbox"])) for record in defects["shifted_boxes"]]

    of_objects = label_table(labels, clusters, damaged)
    if importlib.util.find_spec("cleanlab"):
        of_objects |= objectlab(output, labels, damaged)
    on_missing, on_shifted = ([clusters_on(place, clusters) for place in places] for places in (missing, shifted))
    for name, value in missing_table(clusters, on_missing, on_shifted).items():
        of_objects.setdefault(name, {})["missing_boxes"] = value
    images_with = {kind: np.unique([image_of[number] for number in ids.tolist()]) for kind, ids in damaged.items()}
    images_with["missing_boxes"] = np.unique([image_id for image_id, _ in missing])
    counts = {kind: len(ids) for kind, ids in damaged.items()} | {"missing_boxes": len(missing)}
    image_counts = {kind: len(ids) for kind, ids in images_with.items()}
    return "\n".join(
        (
            "# Finding planted label errors",
            "",
            f"{len(labels['image_id']):,} labels and {len(clusters['image_id']):,} clusters on "
            f"{len(images['image_id']):,} images. AUROC; in brackets the number of each kind. "
            f"{sum(len(rows) == 0 for rows in on_missing)} of the missing boxes have no cluster.",
            "",
            markdown("object", of_objects, counts),
            "",
            "Images with an error of the kind against images without errors. Images with more boxes have more errors; "
            "compare with the counts.",
            "",
            markdown("image", image_table(images, images_with), image_counts),
            "",
        )
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="of a run that has been scored")
    parser.add_argument("--output", type=Path, help="a Markdown file for the same text")
    arguments = parser.parse_args()
    text = report(arguments.output_dir)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
