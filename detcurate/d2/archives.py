"""Weights of strangers, looked at before they are read: pickles of arrays alone, and archives that do not grow."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_MOST_GROWTH = 2
"""How much larger the parts of a ``.pth`` may be than the file; ``torch.save`` packs them without compression."""

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
"""All that a pickle of Detectron2's makers names: arrays by name, and nothing that can be called to an end."""


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain values and NumPy arrays; anything else in a pickle is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may name."""
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _latin
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _latin(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def require_arrays_alone(path: Path) -> None:
    """Raise ``ValueError`` unless a pickle holds plain values and arrays; it is read without running any code of it."""
    try:
        with path.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # a broken pickle makes the reader raise anything
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(content, dict):
        raise ValueError(f"it must hold weights by name, got {type(content).__name__}")
    tables = [content, *(value for value in content.values() if isinstance(value, dict))]
    if any(isinstance(value, np.ndarray) and value.dtype == object for table in tables for value in table.values()):
        raise ValueError("it holds an array of objects")


def require_no_growth(path: Path) -> None:
    """Raise ``ValueError`` when an archive of weights is much smaller than what it unpacks to, as a bomb is."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"it is no whole archive: {error}") from error
    packed = path.stat().st_size
    if unpacked > _MOST_GROWTH * packed:
        raise ValueError(f"it unpacks to {unpacked:,} bytes from {packed:,}, which torch.save does not do")
