"""Where things are: a path of this machine, or one in object storage."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from detcurate.errors import ConfigError
from detcurate.io.storage.client import StorageOptions
from detcurate.io.storage.kinds import KINDS
from detcurate.io.storage.remote import RemotePath

Location = Path | RemotePath
"""Both do what the stages ask of a place."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def is_url(text: str) -> bool:
    """Tell whether a text is a URL.

    Example:
        >>> is_url("s3://pool/images"), is_url("/data/images"), is_url("images")
        (True, False, False)
    """
    return _URL.fullmatch(text) is not None


def locate(text: str, *, name: str = "a location", options: StorageOptions | None = None) -> Location:
    """Return the place that a path or URL names; ``file://`` is a path.

    Args:
        text: A path, or a URL without credentials.
        name: What it is called in messages.
        options: How object storage is asked.

    Raises:
        ConfigError: The URL holds credentials or a query, is of an unknown kind, or names no bucket. The message does
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
            raise ConfigError(
                f"{name} must be file:///… of this machine, got one of another host; mount it, or use s3://"
            )
        return Path("/" + unquote(path))
    if scheme not in KINDS:
        raise ConfigError(f"{name} must be a path or a URL of {', '.join(KINDS)} or file, got {scheme}://…")
    key = re.sub("/+", "/", rest).strip("/")
    if not key or rest.startswith("/"):
        raise ConfigError(f"{name} must name a bucket, as {scheme}://BUCKET/…, got {scheme}://…")
    return RemotePath(scheme, key, options or StorageOptions())


def join(root: Location, text: str, *, name: str = "a location") -> Location:
    """Return the place that ``text`` names from ``root``: below it, unless ``text`` is a URL or an absolute path."""
    if is_url(text):
        options = root.options if isinstance(root, RemotePath) else None
        return locate(text, name=name, options=options)
    return Path(text) if Path(text).is_absolute() else root / text


def require_no_secret(text: str, name: str) -> None:
    """Raise ``ConfigError``, which does not repeat it, when a URL holds credentials or a query."""
    match = _URL.fullmatch(text)
    if match is None:
        return
    authority = match[2].partition("/")[0]
    if "@" in authority or ":" in authority:  # a secret may hold a slash before its @
        found = "some before the bucket"
    elif "?" in match[2]:
        found = "a query after a ?"
    else:
        return
    raise ConfigError(
        f"{name} must be a URL without credentials, got {match[1]}://… with {found}; put them into the environment "
        "(docs/how-to/object-storage.md)"
    )
