"""``detcurate explain``: print why one image was selected or not."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from detcurate.cli.common import say, say_json, table
from detcurate.pipeline.commands.explain import explain_image
from detcurate.pipeline.workspace import named_run

_MOST_CLUSTERS = 12


def run(arguments: argparse.Namespace) -> int:
    """Print the objects, scores, selection and neighbours of an image, and return the exit status."""
    explanation = explain_image(named_run(arguments.config_file, arguments.rest), arguments.image_id)
    if arguments.json:
        say_json(explanation)
    else:
        say(*_report(explanation))
    return 0


def _report(explanation: Mapping[str, Any]) -> list[str]:
    image = explanation["image"]
    place = f", frame {image['frame_index']} of {image['sequence']}" if image["sequence"] is not None else ""
    return [
        f"image {image['image_id']}: {image['file_name']}{place}, {image['num_boxes']:,} boxes",
        _verdict(explanation["selection"]),
        "",
        *_scores(explanation["scores"]),
        "",
        *_objects(explanation["objects"]),
        "",
        *_neighbours(explanation["neighbours"]),
    ]


def _verdict(selection: Mapping[str, Any] | None) -> str:
    if selection is None:
        return "no selection yet"
    if selection["rank"] is not None:
        return f"selected, rank {selection['rank']:,}: {selection['reason']}"
    replaced_by = "" if selection["replaced_by"] is None else f", replaced by image {selection['replaced_by']}"
    return f"not selected: {selection['reason']}{replaced_by}"


def _scores(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        (name, str(item["value"]) if isinstance(item["value"], int) else f"{item['value']:.4f}", item["rank"])
        for name, item in scores.items()
    ]
    total = next(iter(scores.values()))["of"]
    return table(("score", "value", f"rank of {total:,}"), rows)


def _objects(objects: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if objects is None:
        return ["scored without objects (CURATE.PREDICT.MODE dense)"]
    if not objects:
        return ["no object is predicted or labelled"]
    labels = [item for item in objects if item["kind"] != "cluster"]
    clusters = sorted((item for item in objects if item["kind"] == "cluster"), key=lambda item: -item["confidence"])
    rows = [
        (
            item["kind"].replace("_", " "),
            item["class_name"],
            f"{item['confidence']:.2f}",
            " ".join(f"{side:.0f}" for side in item["bbox_xyxy"]),
            ", ".join(f"{name} {count}" for name, count in item["votes"].items()),
            _highest(item["measures"]),
        )
        for item in (*labels, *clusters[:_MOST_CLUSTERS])
    ]
    lines = table(("object", "class", "confidence", "x1 y1 x2 y2", "votes", "highest measures"), rows)
    more = len(clusters) - _MOST_CLUSTERS
    return [*lines, f"… and {more:,} clusters of lower confidence; --json lists all"] if more > 0 else lines


def _highest(measures: Mapping[str, float]) -> str:
    """Return the two highest label-error scores and disagreement measures."""
    shown = (
        "missing_label",
        "wrong_class",
        "inaccurate_box",
        "mutual_information",
        "iou_dispersion",
        "existence_entropy",
    )
    highest = {name: measures[name] for name in shown if measures.get(name, 0) >= 0.005}
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(highest.items(), key=lambda pair: -pair[1])[:2])


def _neighbours(neighbours: Sequence[Mapping[str, Any]]) -> list[str]:
    if not neighbours:
        return ["no neighbours: the image has no sequence, and the pool has no embeddings"]
    rows = []
    for item in neighbours:
        is_frame = item["by"] == "sequence"
        near = f"{item['distance']:+d} frames" if is_frame else f"cosine {item['distance']:.3f}"
        rank = "–" if item["rank"] is None else f"{item['rank']:,}"
        rows.append((f"image {item['image_id']}", near, rank, item["reason"] or "–", item["file_name"]))
    return table(("neighbour", "distance", "rank", "reason", "file"), rows)
