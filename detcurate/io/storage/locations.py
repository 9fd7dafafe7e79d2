"""Locations: paths of this machine and URLs of object storage."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from detcurate.errors import ConfigError
from detcurate.io.storage.client import SCHEMES, StorageOptions
from detcurate.io.storage.remote import RemotePath

Location = Path | RemotePath
"""A place to read from and write to; both types have the methods that the stages use."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def is_url(text: str) -> bool:
    """Return whether a text is a URL.

    Example:
        >>> is_url("s3://pool/images"), is_url("/data/images"), is_url("images")
        (True, False, False)
    """
    return _URL.fullmatch(text) is not None


def locate(text: str, *, name: str = "location", options: StorageOptions | None = None) -> Location:
    """Return the location that a path or URL names; ``file://`` is a path.

    Args:
        text: A path, or a URL without credentials.
        name: Name of the setting or argument, for messages.
        options: Options of object storage.

    Raises:
        ConfigError: The URL holds credentials or a query, has an unknown scheme, or names no bucket. The message does
            not repeat the URL, which may hold a secret.

    Example:
        >>> str(locate("s3://pool/images/")), str(locate("file:///data/images"))
        ('s3://pool/images', '/data/images')
    """
    match = _URL.fullmatch(text)
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), match[2]
    require_no_secret(text, name)
    if scheme == "file":
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise ConfigError(f"{name}: a file:// URL must not name another host. Mount its folder, or use s3://.")
        return Path("/" + unquote(path))
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{name}: unknown scheme (got {scheme}://…). Give a path or a URL of {', '.join(SCHEMES)} or file."
        )
    key = re.sub("/+", "/", rest).strip("/")
    if not key or rest.startswith("/"):
        raise ConfigError(f"{name}: the URL names no bucket (got {scheme}://…). Write {scheme}://BUCKET/….")
    return RemotePath(scheme, key, options or StorageOptions())


def join(root: Location, text: str, *, name: str = "location") -> Location:
    """Return the location of ``text`` relative to ``root``; a URL or an absolute path stands for itself."""
    if is_url(text):
        options = root.options if isinstance(root, RemotePath) else None
        return locate(text, name=name, options=options)
    return Path(text) if Path(text).is_absolute() else root / text


def require_no_secret(text: str, name: str) -> None:
    """Raise ``ConfigError``, which does not repeat the URL, when a URL holds credentials or a query."""
    match = _URL.fullmatch(text)
    if match is None:
        return
    authority = match[2].partition("/")[0]
    if "@" in authority or ":" in authority:  # a secret may hold a slash before its @
        found = "credentials before the bucket"
    elif "?" in match[2]:
        found = "a query after ?"
    else:
        return
    raise ConfigError(
        f"{name}: a URL must not hold credentials (got {match[1]}://… with {found}). Put them into the environment, "
        "see docs/how-to/object-storage.md."
    )
