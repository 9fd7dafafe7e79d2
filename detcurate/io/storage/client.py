"""One client a process and kind of storage, and requests that are tried again when that may help."""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from detcurate.errors import StorageError
from detcurate.io.storage.kinds import KINDS, is_denied, is_final, lacks_credentials

Result = TypeVar("Result")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 20.0
_NOT_AGAIN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING|SAS", re.IGNORECASE)
_LEAST_SECRET = 8  # shorter values of such variables are no secrets, and would blot out whole words
_jitter = random.Random()  # not the module's: a training draws its augmentations from that one


@dataclass(frozen=True)
class StorageOptions:
    """How object storage is asked.

    Args:
        retries: How often a request that failed is tried again, at least 0.
        timeout_s: For how long a connection may be silent, seconds.
        cache: The folder of local copies; ``None`` for the user's own cache folder.
        cache_bytes: What the copies of images may take together.
    """

    retries: int = 5
    timeout_s: float = 30.0
    cache: Path | None = None
    cache_bytes: int = 8_000_000_000


_clients: dict[tuple[str, StorageOptions], Any] = {}
_lock = threading.Lock()


def client(scheme: str, options: StorageOptions) -> Any:
    """Return this process's fsspec file system of a scheme, without a cache of listings, which others may outdate.

    Raises:
        StorageError: The package that speaks it is not installed, or the environment has no account.
    """
    with _lock:
        found = _clients.get((scheme, options))
        if found is None:
            found = _clients[scheme, options] = _new_client(scheme, options)
    return found


def _new_client(scheme: str, options: StorageOptions) -> Any:
    kind = KINDS[scheme]
    try:
        return kind.new_client(options.timeout_s)
    except ImportError as error:
        raise StorageError(
            f"{scheme}:// must have the package {kind.package}, got none: pip install 'detcurate[{kind.extra}]'"
        ) from error
    except Exception as error:
        raise StorageError(
            f"the environment must say how to reach {scheme}://, got {_reason(error)}; "
            "see docs/how-to/object-storage.md"
        ) from error


def request(call: Callable[[Any], Result], *, verb: str, url: str, scheme: str, options: StorageOptions) -> Result:
    """Return what a request gives; where it fails, try again after a pause that doubles, with a random part.

    Args:
        call: Is given the client; asks once.
        verb: What is asked for, such as ``"read"``.
        url: Of what.
        scheme: Of the URL.
        options: How often, and for how long.

    Raises:
        FileNotFoundError: There is no such object.
        StorageError: Access is denied, or it has failed to the last.
    """
    tried = 0
    while True:
        try:
            return call(client(scheme, options))
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", url) from error
        except Exception as error:
            _raise_where_final(error, verb, url)
            if tried >= options.retries:
                raise StorageError(
                    f"{url} must answer when asked to {verb}, got {_reason(error)}, {tried + 1} times; finished work "
                    "is kept: give the same command again, or raise CURATE.STORAGE.RETRIES or TIMEOUT_S"
                ) from error
        time.sleep(min(_FIRST_PAUSE_S * 2**tried, _LONGEST_PAUSE_S) * _jitter.uniform(0.5, 1.0))
        tried += 1


def _raise_where_final(error: Exception, verb: str, url: str) -> None:
    """Raise what an error means, unless the same request may go well later."""
    if lacks_credentials(error) and not is_denied(error):
        raise StorageError(
            f"the environment must hold credentials to {verb} {url}, got none; see docs/how-to/object-storage.md"
        ) from error
    if is_denied(error):
        raise StorageError(
            f"{url} must be open to {verb} with the environment's credentials, got {_reason(error)}; "
            "check them and the rights of their account"
        ) from error
    if is_final(error):
        raise StorageError(
            f"{url} must answer when asked to {verb}, got {_reason(error)}; check the URL and what the environment "
            "says of this storage (docs/how-to/object-storage.md)"
        ) from error
    if isinstance(error, OSError) and error.errno in _NOT_AGAIN:
        raise error


def _reason(error: BaseException) -> str:
    """Return what an error says, without anything that the environment holds as a secret."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    if said == "FSTimeoutError":  # fsspec's word for it, which says no more
        said = "silence for too long"
    # Azure adds what its answer held, line by line; gcsfs's text may be empty before the status.
    said = re.sub(r"^, (?=\d+$)", "status ", " ".join(re.split(r"\n(?:RequestId|ErrorCode|Content):", said)[0].split()))
    text = re.sub(r"//[^/@\s]+@", "//…@", said).rstrip(".")
    secrets = (value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _LEAST_SECRET)
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


def _forget() -> None:
    """Begin anew in a forked process: neither connections nor a lock that was held go with it."""
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_forget)
