"""A location in object storage with the methods of ``Path`` that the stages use."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import io
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from detcurate.errors import StorageError
from detcurate.io.storage.client import StorageOptions, request

Result = TypeVar("Result")

_BUFFER = 4 << 20  # bytes a request of a reader of a large object
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "last_modified", "updated")
"""Fields of a listing that change with an object's content, by each storage's name, the most reliable first."""


class Entry(NamedTuple):
    """Size of an object in bytes, and a number that changes with its content."""

    size: int
    tag: int


class CutShortError(OSError):
    """The length of a body differs from the size that the storage states."""


@dataclass(frozen=True)
class RemotePath:
    """An object, or a prefix that ends at a slash: the folder of the objects below it.

    Args:
        scheme: ``"s3"``, ``"gs"`` or ``"az"``.
        key: Bucket and name, without a slash at either end.
        options: Options of requests.
    """

    scheme: str
    key: str
    options: StorageOptions = field(default=StorageOptions(), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str) -> RemotePath:
        return self.joinpath(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (self.scheme, self.key, self.options)  # without the listing

    def joinpath(self, *names: str) -> RemotePath:
        """Return the location that the names lead to.

        Raises:
            ValueError: It is not below this one.
        """
        below = posixpath.normpath("/".join(names))
        if posixpath.isabs(below) or below == ".." or below.startswith("../"):
            raise ValueError(f"{self}: a name leads out of it (got {'/'.join(names)!r})")
        return self if below == "." else RemotePath(self.scheme, f"{self.key}/{below}", self.options)

    @property
    def name(self) -> str:
        """The last part."""
        return posixpath.basename(self.key)

    @property
    def suffix(self) -> str:
        """The suffix of the last part, such as ``".gz"``."""
        return posixpath.splitext(self.key)[1]

    @property
    def parent(self) -> RemotePath:
        """The folder that holds this; a bucket holds itself."""
        return RemotePath(self.scheme, posixpath.dirname(self.key) or self.key, self.options)

    def relative_to(self, other: RemotePath) -> Path:
        """Return the part of this path below another; raises ``ValueError`` when it is not."""
        if not self.key.startswith(f"{other.key}/") or self.scheme != other.scheme:
            raise ValueError(f"{self} is not below {other}")
        return Path(self.key[len(other.key) + 1 :])

    def resolve(self) -> RemotePath:
        """Return this location: object storage has no links."""
        return self

    def is_symlink(self) -> bool:
        """Return False: object storage has no links."""
        return False

    def is_file(self) -> bool:
        """Return whether an object has this name."""
        try:
            return bool(self._info()["type"] == "file")
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Return whether objects are below."""
        return bool(self._request("list", lambda storage: storage.isdir(self.key)))

    def exists(self) -> bool:
        """Return whether an object has this name, or objects are below."""
        return self.is_file() or self.is_dir()

    def entry(self) -> Entry:
        """Return the size and tag of the object; raise ``FileNotFoundError`` when it is absent."""
        return _entry(self._info())

    def list_files(self) -> dict[str, Entry]:
        """Return the objects below, by their relative names, from one listing."""

        def find(storage: Any) -> dict[str, Entry]:
            try:
                found = storage.find(self.key, detail=True)
            except FileNotFoundError:
                return {}
            return {name[len(self.key) + 1 :]: _entry(info) for name, info in found.items()}

        found = self._request("list", find)
        return {name: entry for name, entry in found.items() if name and not name.endswith("/")}

    @cached_property
    def listing(self) -> Mapping[str, Entry]:
        """The first result of :meth:`list_files` of this instance, for folders that do not change during a run."""
        return self.list_files()

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield the objects and folders below that match a pattern, part by part."""
        parts = pattern.split("/")
        heads = {tuple(name.split("/")[: len(parts)]) for name in self.list_files()}
        for head in sorted(heads):
            if len(head) == len(parts) and all(map(fnmatch.fnmatchcase, head, parts)):
                yield self.joinpath(*head)

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the objects and folders directly below."""
        return self.glob("*")

    def read_bytes(self, entry: Entry | None = None) -> bytes:
        """Return the object's bytes; their number must be the size that the storage, or ``entry``, states.

        Raises:
            FileNotFoundError: The object is absent.
            StorageError: It cannot be read, or only in part.
        """

        def read(storage: Any) -> bytes:
            size = (entry or _entry(storage.info(self.key))).size
            # One byte more than the object has: without a range the packages first request the size, and the extra
            # byte shows an object that has grown.
            return _of_length(storage.cat_file(self.key, start=0, end=size + 1) if size else b"", size)

        return self._request("read", read)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the object for reading with seeks, a few megabytes a request, without a local copy."""
        if mode not in ("rb", "r"):
            raise ValueError(f"{self}: an object can only be opened for reading (got mode {mode!r})")
        return io.BufferedReader(_Ranges(self, self.entry().size), _BUFFER)

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to, not including, ``stop``."""
        return self._request(
            "read",
            lambda storage: _of_length(storage.cat_file(self.key, start=start, end=stop), stop - start),
        )

    def download(self, target: Path) -> None:
        """Write the object's bytes to a file without holding them in memory; raise as :meth:`read_bytes`."""

        def get(storage: Any) -> None:
            size = storage.info(self.key)["size"]
            storage.get_file(self.key, str(target))
            if target.stat().st_size != size:
                raise CutShortError(f"{target.stat().st_size:,} of {size:,} bytes")

        self._request("read", get)

    def upload(self, source: Path) -> None:
        """Upload a file, with its SHA-256 as metadata; the object appears when the upload is complete.

        Raises:
            StorageError: The bucket is absent, or cannot be written to.
        """
        extra: dict[str, Any] = {}
        if self.scheme in _ATTACH:
            with source.open("rb") as stream:
                extra = _ATTACH[self.scheme](_digest(stream))
        try:
            self._request("write", lambda storage: storage.put_file(str(source), self.key, **extra))
        except FileNotFoundError as error:
            raise StorageError(
                f"{self}: the bucket does not exist (got {self.key.partition('/')[0]}). Create it, or give another."
            ) from error

    def sha256(self, *, always_read: bool = False) -> str:
        """Return the SHA-256 of the object: from the metadata that ``upload`` wrote, else computed from its bytes."""
        if self.scheme in _ATTACHED and not always_read:
            attached = self._request("read", lambda storage: _ATTACHED[self.scheme](storage, self.key))
            if attached:
                return attached
        with self.open() as stream:
            return _digest(stream)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        try:
            self._request("remove", lambda storage: storage.rm_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Remove the object and the objects below."""

        def remove(storage: Any) -> None:
            with contextlib.suppress(FileNotFoundError):
                storage.rm(self.key, recursive=True)

        self._request("remove", remove)

    def _info(self) -> dict[str, Any]:
        return dict(self._request("read", lambda storage: storage.info(self.key)))

    def _request(self, verb: str, call: Callable[[Any], Result]) -> Result:
        return request(call, verb=verb, url=str(self), scheme=self.scheme, options=self.options)


class _Ranges(io.RawIOBase):
    """An object as a file that is read by ranges; a range that fails, or arrives in part, is requested again."""

    def __init__(self, path: RemotePath, size: int) -> None:
        self._path, self._size, self._at = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._path.read_range(self._at, stop)
        buffer[: len(data)] = data
        self._at = stop
        return len(data)


def _entry(info: Mapping[str, Any]) -> Entry:
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    tag = hashlib.sha256(version.strip('"').encode()).digest()
    return Entry(int(info.get("size") or 0), int.from_bytes(tag[:7], "big"))


def _of_length(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise CutShortError(f"{len(data):,} of {size:,} bytes")
    return data


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(_BUFFER):
        digest.update(block)
    return digest.hexdigest()


# Metadata of objects differ between the packages; the others compute the digest from the bytes.
_ATTACH: Mapping[str, Callable[[str], dict[str, Any]]] = {"s3": lambda digest: {"Metadata": {"sha256": digest}}}
_ATTACHED: Mapping[str, Callable[[Any, str], str | None]] = {
    "s3": lambda storage, key: storage.metadata(key).get("sha256")
}
