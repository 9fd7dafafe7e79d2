"""Object storage through fsspec: ``s3://``, ``gs://`` and ``az://`` URLs beside plain paths.

A :class:`RemotePath` has the methods of ``Path`` that the stages use. Every request is retried where that may help, and
the length of what arrives is compared with the size that the storage states.

**Publishing.** An object store shows an object when its upload is complete and never a part of one, so uploads need no
temporary key: a file is written locally and uploaded as one object, a stage's metadata last. ``file://`` is the local
file system, where a file is written beside its target and then renamed.

**Credentials** come from the environment, as each storage's own tools read them; a URL that holds some is refused.
"""

from detcurate.io.storage.client import StorageOptions
from detcurate.io.storage.copies import LocalCopies, annotation_copy, local_file, published
from detcurate.io.storage.images import (
    RemoteImage,
    fetch_ahead,
    image_files,
    image_source,
    image_statuses,
    path_status,
)
from detcurate.io.storage.locations import Location, is_url, join, locate
from detcurate.io.storage.remote import RemotePath

__all__ = [
    "LocalCopies",
    "Location",
    "RemoteImage",
    "RemotePath",
    "StorageOptions",
    "annotation_copy",
    "fetch_ahead",
    "image_files",
    "image_source",
    "image_statuses",
    "is_url",
    "join",
    "local_file",
    "locate",
    "path_status",
    "published",
]
