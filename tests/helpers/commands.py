"""Annotation files for tests of the commands, and the tables that the commands print."""

import re

CATEGORIES = [{"id": 9, "name": "car"}, {"id": 2, "name": "person"}, {"id": 5, "name": "bike"}]
SIZES = {30: (64, 48), 7: (62, 46), 12: (63, 47), 41: (65, 49)}
BOXES = [(41, 9, 20), (12, 2, 8), (41, 2, 40), (30, 9, 33), (12, 5, 9), (41, 9, 31)]


def coco(keys=tuple(SIZES), **changes: object):
    return {
        "images": [
            {"id": key, "file_name": f"{key}.png", "width": SIZES[key][0], "height": SIZES[key][1],
             "weather": "rain" if key < 20 else "clear"}
            for key in keys
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [1, 2, side, side],
             "area": side * side, "iscrowd": 0}
            for number, (image, category, side) in enumerate(BOXES, start=1)
            if image in keys
        ],
        "categories": CATEGORIES,
        **changes,
    }  # fmt: skip


def rows(text, header):
    """Return the rows of the printed table with a header that begins with the given columns."""
    lines = text.split("\n")
    start = next(at for at, line in enumerate(lines) if re.split(r"\s{2,}", line)[: len(header)] == header)
    assert set(lines[start + 1]) == {"-", " "}
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    return [tuple(re.split(r"\s{2,}", line.strip())) for line in lines[start + 2 : end]]
