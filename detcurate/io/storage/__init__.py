"""Object storage through fsspec: ``s3://``, ``gs://`` and ``az://`` beside plain paths.

A :class:`RemotePath` does what the stages ask of a ``Path``; every request of it is tried again when it may help, and
what arrives is measured against what the storage says the object has.

**Publishing.** An object store shows an object when its upload is complete (of several parts: when they are joined),
and never a part of one, so what is written needs no temporary key there: it is made in a local temporary file, then
uploaded as one, and a stage's marker is uploaded last. ``file://`` is the local file system, where a file is written
beside its target and then renamed.

**Credentials** are the environment's, as each storage's own tools read them; a URL that holds some is refused.
"""

from detcurate.io.storage.client import StorageOptions
from detcurate.io.storage.copies import LocalCopies, annotation_copy, local_file
from detcurate.io.storage.images import (
    RemoteImage,
    fetch_ahead,
    image_files,
    image_source,
    image_statuses,
    path_status,
)
from detcurate.io.storage.locations import Location, is_url, join, locate
from detcurate.io.storage.publish import published
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
