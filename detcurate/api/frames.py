"""Runs and data frames, as the views want them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detcurate.coco.dataset import CocoDataset
from detcurate.errors import ConfigError, DatasetError
from detcurate.pipeline.context import Run
from detcurate.pipeline.named import named_run

if TYPE_CHECKING:
    import pandas as pd

Folder = str | os.PathLike[str]


def open_run(output_dir: Folder) -> Run:
    """Return the run that has left ``output_dir``.

    Raises:
        ConfigError: The folder is not that of a run.
    """
    return named_run(None, [str(output_dir)])


def data_frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return columns as a data frame.

    Raises:
        ConfigError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError(
            "to_pandas must have pandas, got none; install it with pip install 'detcurate[notebook]'"
        ) from error
    frame: pd.DataFrame = pandas.DataFrame(dict(columns))
    return frame


def original_ids(pool: CocoDataset, image_ids: Sequence[int] | np.ndarray) -> list[int | str]:
    """Return images' ids as the pool's file has them."""
    return [pool.text_ids.get(int(number), int(number)) for number in image_ids]


def row_of(pool: CocoDataset, image_id: int | str) -> int:
    """Return an image's row.

    Raises:
        DatasetError: There is no such image.
    """
    for row in range(len(pool)):
        if pool.original_id(row) == image_id:
            return row
    raise DatasetError(f"image_id must be an image of {pool.path}, got {image_id!r}; see Pool.to_pandas()")


def require_column(name: str, known: Sequence[str]) -> None:
    """Raise ``ConfigError`` unless a column exists."""
    if name not in known:
        raise ConfigError(f"the column must be one of {', '.join(known)}, got {name!r}")
