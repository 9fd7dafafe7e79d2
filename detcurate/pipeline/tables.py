"""The Parquet tables of a run: one class a table names, writes, reads and validates its columns.

``score/objects.parquet`` is in :mod:`detcurate.pipeline.object_table`, the others are here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detcurate.errors import PredictionError
from detcurate.io.files import atomic_path
from detcurate.io.parquet import bounded
from detcurate.io.storage import Location
from detcurate.legacy import COLUMNS as OLD_NAMES
from detcurate.legacy import renamed, renamed_reason
from detcurate.pipeline.context import Run
from detcurate.score.label_errors import LABEL_ERROR_MEANINGS
from detcurate.score.measures import LABEL_MEASURES, MEASURES, describe_measure
from detcurate.structures import ImageScores, Selection

IMAGE_ID, IMAGE_SCORE = "image_id", "image_score"
_REASON = "reason"
_BATCH = 1 << 17  # rows read at a time


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: Its name in the file.
        dtype: Its Arrow type.
        meaning: One line for the reference; null values are explained there.
        is_optional: Whether some runs lack it.
    """

    name: str
    dtype: pa.DataType
    meaning: str
    is_optional: bool = False


def measure_columns(names: Mapping[str, Any], dtype: pa.DataType) -> tuple[Column, ...]:
    """Return a column for each measure, with its meaning from the registry."""
    return tuple(Column(name, dtype, describe_measure(name).meaning, is_optional=True) for name in names)


Self = TypeVar("Self", bound="Table")


@dataclass(frozen=True)
class Table:
    """A table file of one kind; the subclasses name the columns.

    A file of version 0.1 is read with the column names of today.

    Args:
        path: The file, which need not exist yet.
    """

    path: Location

    STAGE: ClassVar[str]
    FILE: ClassVar[str]
    COLUMNS: ClassVar[tuple[Column, ...]]

    @classmethod
    def columns(cls) -> tuple[Column, ...]:
        """Return the columns in the order of the file."""
        return cls.COLUMNS

    @classmethod
    def of(cls: type[Self], run: Run) -> Self:
        """Return the table of a run.

        Raises:
            PredictionError: The stage that writes it has not finished.
        """
        run.stage_metadata(cls.STAGE)
        return cls.within(run.directory(cls.STAGE))

    @classmethod
    def within(cls: type[Self], directory: Location) -> Self:
        """Return the table in the directory of its stage."""
        return cls(directory / cls.FILE)

    def exists(self) -> bool:
        """Whether the file exists."""
        return self.path.is_file()

    def write(self, columns: Mapping[str, Any]) -> Location:
        """Write columns of one length atomically, with the declared types, and return the path.

        Raises:
            PredictionError: A required column is missing.
        """
        self._require(columns)
        types = {column.name: column.dtype for column in self.columns()}
        table = pa.table({name: _typed(values, types.get(name)) for name, values in columns.items()})
        with atomic_path(self.path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        return self.path

    def names(self) -> tuple[str, ...]:
        """Return the names of the columns that the file has."""
        with self._opened() as file:
            return tuple(OLD_NAMES.get(name, name) for name in file.schema_arrow.names)

    def read(self, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return all columns as arrays, or those of ``names`` that the file has; null numbers become NaN.

        Raises:
            PredictionError: The file is absent, damaged, or lacks a required column.
        """
        table = self.rows(names=names)
        return {name: table[name].to_numpy() for name in table.column_names}

    def rows(self, image_ids: np.ndarray | None = None, *, names: Sequence[str] | None = None) -> pa.Table:
        """Return the rows, or those of some images; only the row groups that can hold these images are read.

        Args:
            image_ids: (n,) int64; None for all rows.
            names: The columns wanted, as far as the file has them; None for all.

        Raises:
            PredictionError: The file is absent, damaged, or lacks a required column.
        """
        with self._opened() as file:
            known = _stored_names(file, names)
            if image_ids is None:
                return _renamed(file.read(columns=known))
            wanted = pa.array(image_ids, pa.int64())
            parts = [
                part.filter(pc.is_in(part[IMAGE_ID], wanted))
                for group in range(file.num_row_groups)
                if _may_hold(file, group, image_ids)
                for part in [_renamed(file.read_row_group(group, columns=known))]
            ]
            return pa.concat_tables(parts) if parts else _renamed(file.schema_arrow.empty_table().select(known))

    def batches(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows in order, at most 131,072 at a time.

        Raises:
            PredictionError: The file is absent, damaged, or lacks a required column.
        """
        with self._opened() as file:
            for batch in file.iter_batches(batch_size=_BATCH, columns=_stored_names(file, names)):
                yield _renamed(pa.Table.from_batches([batch]))

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(bounded(self.path)) as file:
                self._require([OLD_NAMES.get(name, name) for name in file.schema_arrow.names])
                yield file
        except (OSError, ValueError, pa.ArrowException) as error:
            raise PredictionError(
                f"{self.path}: not a whole Parquet file ({error}). Delete it and run the same command again."
            ) from error

    def _require(self, names: Any) -> None:
        missing = [column.name for column in self.columns() if not column.is_optional and column.name not in names]
        if missing:
            raise PredictionError(
                f"{self.path}: columns are missing (got {', '.join(names) or 'none'}; missing {', '.join(missing)}). "
                f"Run the stage {self.STAGE} again."
            )


def _typed(values: Any, dtype: pa.DataType | None) -> pa.Array:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return array if dtype is None or array.type == dtype else array.cast(dtype)


def _stored_names(file: pq.ParquetFile, names: Sequence[str] | None) -> list[str]:
    """Return the file's own names of the wanted columns, which version 0.1 may have named otherwise."""
    stored: list[str] = file.schema_arrow.names
    return stored if names is None else [name for name in stored if OLD_NAMES.get(name, name) in names]


def _renamed(table: pa.Table) -> pa.Table:
    table = table.rename_columns([renamed(name) for name in table.column_names])
    if _REASON not in table.column_names:
        return table
    new = {reason: renamed_reason(reason) for reason in table[_REASON].unique().to_pylist()}
    if all(old == reason for old, reason in new.items()):
        return table
    reasons = pa.array([new[reason] for reason in table[_REASON].to_pylist()], pa.string())
    return table.set_column(table.column_names.index(_REASON), _REASON, reasons)


def _may_hold(file: pq.ParquetFile, group: int, image_ids: np.ndarray) -> bool:
    """Return, from the statistics of a row group, whether it can hold one of the images."""
    bounds = file.metadata.row_group(group).column(file.schema_arrow.get_field_index(IMAGE_ID)).statistics
    if bounds is None or not bounds.has_min_max:
        return True
    return bool(((image_ids >= bounds.min) & (image_ids <= bounds.max)).any())


class ImagesTable(Table):
    """``score/images.parquet``: one row an image of the pool."""

    STAGE, FILE = "score", "images.parquet"
    COLUMNS = (
        Column(IMAGE_ID, pa.int64(), "The image's id in the annotation file; ascending."),
        Column(IMAGE_SCORE, pa.float64(), "The combined score; a higher score is selected first."),
        *measure_columns({**MEASURES, **LABEL_MEASURES}, pa.float64()),
        *(Column(name, pa.float64(), meaning, is_optional=True) for name, meaning in LABEL_ERROR_MEANINGS.items()),
        Column("num_objects", pa.int64(), "Detected objects; in the mode dense the labelled boxes.", True),
        Column("num_labels", pa.int64(), "Labelled boxes without crowd regions.", True),
    )  # fmt: skip

    def write_scores(self, scores: ImageScores) -> Location:
        """Write the scores of a pool and return the path."""
        return self.write({IMAGE_ID: scores.image_ids, IMAGE_SCORE: scores.image_score, **scores.components})

    def scores(self) -> ImageScores:
        """Return the scores of the pool."""
        table = self.read()
        image_ids, image_score = table.pop(IMAGE_ID), table.pop(IMAGE_SCORE)
        return ImageScores(image_ids, image_score, table)


class SelectionTable(Table):
    """``select/selection.parquet``: one row a selected image, by rank."""

    STAGE, FILE = "select", "selection.parquet"
    COLUMNS = (
        Column("rank", pa.int64(), "1 for the first image selected."),
        Column(IMAGE_ID, pa.int64(), "The image's id in the annotation file."),
        Column(IMAGE_SCORE, pa.float64(), "Its score; 0 in the seed set of a search."),
        Column(_REASON, pa.string(), "The step that selected it: the strategy, a minimum quota or a search round."),
    )

    def selection(self) -> Selection:
        """Return the selected images with their reasons."""
        table = self.read()
        return Selection(table[IMAGE_ID], tuple(table["reason"].tolist()))


class RemovedTable(Table):
    """``select/removed.parquet``: one row an image that was not selected, by id."""

    STAGE, FILE = "select", "removed.parquet"
    COLUMNS = (
        Column(IMAGE_ID, pa.int64(), "The image's id in the annotation file."),
        Column(IMAGE_SCORE, pa.float64(), "Its score."),
        Column(_REASON, pa.string(), "The step that removed it."),
        Column("replaced_by", pa.int64(), "The id of the similar image that replaces it, or null."),
    )  # fmt: skip


class RelabelTable(Table):
    """``select/relabel.parquet``: one row an image that the label-noise filter removed, the most suspicious first."""

    STAGE, FILE = "select", "relabel.parquet"
    COLUMNS = (
        Column(IMAGE_ID, pa.int64(), "The image's id in the annotation file."),
        Column("label_error_score", pa.float64(), "The highest label-error score of its objects, in [0, 1]."),
    )


class ReplicatesTable(Table):
    """``evaluate/replicates.parquet``: one row a resampled evaluation set, one column a figure of a detector."""

    STAGE, FILE = "evaluate", "replicates.parquet"
    COLUMNS = (
        Column("ARM/seed-SEED/figures/NAME", pa.float64(), "The figure NAME (AP, AP50, …) in percent.", True),
        Column("ARM/seed-SEED/per_class/CLASS", pa.float64(), "The AP of a class in percent, or NaN.", True),
    )


def read_scores(run: Run) -> ImageScores:
    """Return the scores of a run's pool; raises ``PredictionError`` when it is not scored."""
    return ImagesTable.of(run).scores()


def read_selection(run: Run) -> Selection:
    """Return the selected images of a run; raises ``PredictionError`` when nothing is selected."""
    return SelectionTable.of(run).selection()
