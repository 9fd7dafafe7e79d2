"""``detcurate export``: write suspected label errors, or the subset, as files of annotation tools and trainers."""

from __future__ import annotations

import argparse

from detcurate.cli.common import say, say_json
from detcurate.interop.export.formats import Images, Options, write_export
from detcurate.pipeline.commands.export import export_content
from detcurate.pipeline.workspace import named_run


def run(arguments: argparse.Namespace) -> int:
    """Write the files, print their names, and return the exit status."""
    parts = export_content(named_run(arguments.config_file, arguments.rest), arguments.what, limit=arguments.limit)
    images: Images = arguments.images or ("link" if arguments.format == "yolo" else "none")
    written = write_export(arguments.format, arguments.output, parts, Options(images=images, url=arguments.url))
    content = parts["train"]
    counts = {
        "images": len(content.rows),
        "label_errors": len(content.label_errors),
        "crowd_regions_left_out": 0 if arguments.format == "fiftyone" else content.num_crowd_regions,
    }
    if arguments.json:
        say_json({"files": [str(path) for path in written], **counts})
        return 0
    crowds = counts["crowd_regions_left_out"]
    skipped = f"; {crowds:,} crowd regions not exported, they stay unchanged" if crowds else ""
    say(
        *map(str, written),
        f"{counts['images']:,} images with {counts['label_errors']:,} suspected label errors{skipped}",
    )
    return 0
