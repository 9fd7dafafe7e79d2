"""Fixtures for exploits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture
def write_pool(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return a function that writes a COCO file of one image and one class, with an attacker's changes."""

    def write(*, image: dict[str, Any] | None = None, category: str = "car", **extra: Any) -> tuple[Path, Path]:
        root = tmp_path / "images"
        root.mkdir(exist_ok=True)
        if not any(root.iterdir()):
            Image.new("RGB", (8, 6)).save(root / "a.png")
        coco = {
            "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6, **(image or {})}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 2], "area": 6, "iscrowd": 0}],
            "categories": [{"id": 1, "name": category}],
            **extra,
        }
        path = tmp_path / "pool.json"
        path.write_text(json.dumps(coco))
        return path, root

    return write
