"""Images in object storage as Detectron2 opens them: by a handler of its own path manager."""

from __future__ import annotations

from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from detcurate.config import curate_settings
from detcurate.storage import RemoteImage, StorageOptions

_SCHEMES = ("s3://", "gs://", "az://")


class RemoteImageHandler(PathHandler):
    """Opens images in object storage for reading, through the local copies.

    Args:
        options: How the storage is asked.
    """

    def __init__(self, options: StorageOptions) -> None:
        super().__init__()
        self.options = options

    def _get_supported_prefixes(self) -> list[str]:
        return list(_SCHEMES)

    def _open(self, path: str, mode: str = "rb", buffering: int = -1, **_: Any) -> Any:
        if mode not in ("r", "rb"):
            raise ValueError(f"an object in storage is opened for reading, got {mode!r}")
        return RemoteImage.parse(path, self.options).open()


def open_remote_images(cfg: Any) -> None:
    """Let Detectron2 open images in object storage in this process, as ``CURATE.STORAGE`` says."""
    PathManager.register_handler(RemoteImageHandler(storage_options(cfg)), allow_override=True)


def storage_options(cfg: Any) -> StorageOptions:
    """Return what ``CURATE.STORAGE`` says of how object storage is asked."""
    return curate_settings(cfg.CURATE).storage.options
