"""Checks of untrusted weights before they are loaded: pickles hold arrays only, and archives do not expand."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_MOST_GROWTH = 2
"""Maximum ratio of the unpacked size of a ``.pth`` to its file; ``torch.save`` does not compress."""

_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
}
"""The globals of the pickles in Detectron2's model zoo; none of them has side effects."""


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain values and NumPy arrays; any other global is rejected before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed global."""
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _latin
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"the pickle refers to {module}.{name}")
        return super().find_class(module, name)


def _latin(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"the pickle holds bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def require_only_arrays(path: Path) -> None:
    """Raise ``ValueError`` unless a pickle holds plain values and arrays only; no code in it is run."""
    try:
        with path.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # the unpickler raises any type of error for a broken pickle
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(content, dict):
        raise ValueError(f"a mapping of names to weights is required (got {type(content).__name__})")
    tables = [content, *(value for value in content.values() if isinstance(value, dict))]
    if any(isinstance(value, np.ndarray) and value.dtype == object for table in tables for value in table.values()):
        raise ValueError("the pickle holds an array of objects")


def require_no_growth(path: Path) -> None:
    """Raise ``ValueError`` if an archive of weights expands, as a decompression bomb does."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"the archive is damaged: {error}") from error
    packed = path.stat().st_size
    if unpacked > _MOST_GROWTH * packed:
        raise ValueError(f"the archive expands from {packed:,} to {unpacked:,} bytes; torch.save does not compress")
