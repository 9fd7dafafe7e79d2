"""``detcurate explain IMAGE_ID``: why one image was taken or not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detcurate.cli.common import say, say_json, table
from detcurate.pipeline.commands.explain import explain_image
from detcurate.pipeline.workspace import named_run

_MOST_CLUSTERS = 12
_EPILOG = """\
The run is named by its config, with KEY VALUE overrides, or by its OUTPUT_DIR:
  %(prog)s 17 --config-file my.yaml
  %(prog)s 17 output/mine

A rank of a score is the image's place in the pool, the highest first.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate explain``."""
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).name} explain",
        description="Tell of one image its objects, its scores, whether it was selected and why, and what is near it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image_id", metavar="IMAGE_ID", help="the image's id in the annotation file")
    parser.add_argument("--config-file", type=Path, metavar="FILE", help="the config of the run")
    parser.add_argument("--json", action="store_true", help="print JSON, with every measure of every object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("rest", nargs="*", metavar="OUTPUT_DIR | KEY VALUE", help="the run, or overrides of its config")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = build_parser().parse_intermixed_args(argv)
    found = explain_image(named_run(arguments.config_file, arguments.rest), arguments.image_id)
    if arguments.json:
        say_json(found)
    else:
        say(*_report(found))
    return 0


def _report(found: Mapping[str, Any]) -> list[str]:
    image = found["image"]
    place = f", frame {image['frame_index']} of {image['sequence']}" if image["sequence"] is not None else ""
    return [
        f"image {image['image_id']}: {image['file_name']}{place}, {image['num_boxes']:,} boxes",
        _verdict(found["selection"]),
        "",
        *_scores(found["scores"]),
        "",
        *_objects(found["objects"]),
        "",
        *_neighbours(found["neighbours"]),
    ]


def _verdict(selection: Mapping[str, Any] | None) -> str:
    if selection is None:
        return "nothing was selected yet"
    if selection["rank"] is not None:
        return f"selected, rank {selection['rank']:,}: {selection['reason']}"
    replaced_by = "" if selection["replaced_by"] is None else f", it gives way to image {selection['replaced_by']}"
    return f"not selected: {selection['reason']}{replaced_by}"


def _scores(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        (name, str(found["value"]) if isinstance(found["value"], int) else f"{found['value']:.4f}", found["rank"])
        for name, found in scores.items()
    ]
    total = next(iter(scores.values()))["of"]
    return table(("score", "value", f"rank of {total:,}"), rows)


def _objects(objects: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if objects is None:
        return ["it was scored without objects (CURATE.PREDICT.MODE dense)"]
    if not objects:
        return ["no member sees an object, and none is labelled"]
    labels = [found for found in objects if found["kind"] != "cluster"]
    clusters = sorted(
        (found for found in objects if found["kind"] == "cluster"), key=lambda found: -found["confidence"]
    )
    rows = [
        (
            found["kind"].replace("_", " "),
            found["class_name"],
            f"{found['confidence']:.2f}",
            " ".join(f"{side:.0f}" for side in found["bbox_xyxy"]),
            ", ".join(f"{name} {count}" for name, count in found["votes"].items()),
            _greatest(found["measures"]),
        )
        for found in (*labels, *clusters[:_MOST_CLUSTERS])
    ]
    lines = table(("object", "class", "confidence", "x1 y1 x2 y2", "votes", "what stands out"), rows)
    more = len(clusters) - _MOST_CLUSTERS
    return [*lines, f"… and {more:,} clusters of less confidence; --json has all"] if more > 0 else lines


def _greatest(measures: Mapping[str, float]) -> str:
    """Name the two greatest of the suspicions and disagreements."""
    shown = (
        "missing_label",
        "wrong_class",
        "inaccurate_box",
        "mutual_information",
        "iou_dispersion",
        "existence_entropy",
    )
    found = {name: measures[name] for name in shown if measures.get(name, 0) >= 0.005}
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(found.items(), key=lambda pair: -pair[1])[:2])


def _neighbours(neighbours: Sequence[Mapping[str, Any]]) -> list[str]:
    if not neighbours:
        return ["no neighbours: the image has no sequence, and the pool no embeddings"]
    rows = []
    for found in neighbours:
        is_frame = found["by"] == "sequence"
        near = f"{found['distance']:+d} frames" if is_frame else f"cosine {found['distance']:.3f}"
        rank = "–" if found["rank"] is None else f"{found['rank']:,}"
        rows.append((f"image {found['image_id']}", near, rank, found["reason"] or "–", found["file_name"]))
    return table(("neighbour", "near by", "rank", "reason", "file"), rows)
