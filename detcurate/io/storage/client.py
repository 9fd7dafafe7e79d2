"""File systems of object storage, one a process and scheme, and requests with retries and errors that say what to do.

A library's own retries are switched off where it has a public setting for that, so that ``CURATE.STORAGE.RETRIES``
counts attempts. gcsfs has none: what it has retried itself is not retried here.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from detcurate.errors import StorageError

Result = TypeVar("Result")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 20.0
_DOCUMENT = "docs/how-to/object-storage.md"
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING|SAS", re.IGNORECASE)
_MIN_SECRET_LENGTH = 8  # shorter values of such variables are no secrets, and replacing them would garble messages
_jitter = random.Random()  # not the global generator: a training draws its augmentations from that one

_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_DENIED = (401, 403)
_CLIENT_ERRORS, _TRANSIENT = range(400, 500), (408, 429)
_BAD_SETUP = ("ProfileNotFound", "ConfigParseError", "InvalidConfigError", "NoRegionError", "ParamValidationError")
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "CredentialUnavailableError",
    "ClientAuthenticationError",  # Azure's, when no request was sent
)


@dataclass(frozen=True)
class StorageOptions:
    """Options of requests and local copies.

    Args:
        retries: Further attempts after a failed request, at least 0.
        timeout_s: Longest silence of a connection, seconds.
        cache: Folder of local copies; ``None`` for the user's cache folder.
        cache_bytes: Largest total size of the copies of images.
    """

    retries: int = 5
    timeout_s: float = 30.0
    cache: Path | None = None
    cache_bytes: int = 8_000_000_000


def _s3_file_system(timeout_s: float) -> Any:
    import fsspec

    config = {
        "connect_timeout": timeout_s,
        "read_timeout": timeout_s,
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": 64,
    }
    file_system = fsspec.filesystem("s3", **_OWN_INSTANCE, config_kwargs=config)
    file_system.retries = 1
    return file_system


def _gs_file_system(timeout_s: float) -> Any:
    import aiohttp

    # gcsfs's default class first requests the type of each bucket by gRPC, with a warning where that is not allowed.
    file_system = importlib.import_module("gcsfs.core").GCSFileSystem
    logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # it logs the traceback of what it raises anyway
    # A plain number would bound a whole request, and with it the size of an object.
    silence = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    return file_system(**_OWN_INSTANCE, requests_timeout=silence)


def _az_file_system(timeout_s: float) -> Any:
    timeouts = {"connection_timeout": timeout_s, "read_timeout": timeout_s}

    class FileSystem(importlib.import_module("adlfs").AzureBlobFileSystem):  # type: ignore[misc]
        service_client: Any

        def do_connect(self) -> None:
            super().do_connect()
            # adlfs has no setting for the client's retries, which pause for 15 s and more, nor for listings' timeouts.
            client = self.service_client
            self.service_client = type(client)(client.url, credential=client.credential, retry_total=0, **timeouts)

    return FileSystem(**_OWN_INSTANCE, **timeouts)


def _is_retried_by_gcsfs(error: Exception) -> bool:
    is_retriable = importlib.import_module("gcsfs.retry").is_retriable
    return any(is_retriable(found) for found in (error, error.__cause__))  # fsspec raises a timeout as its own class


# fsspec's shared instances are one a thread; a cache of listings would not see what other processes write.
_OWN_INSTANCE: Mapping[str, bool] = {"skip_instance_cache": True, "use_listings_cache": False}


@dataclass(frozen=True)
class Scheme:
    """A scheme of URLs that is object storage.

    Args:
        extra: Extra of detcurate that installs its package.
        package: Package that implements it.
        file_system: Creates its fsspec file system, given the longest silence of a connection in seconds.
        has_retried: Tells whether the package has already retried the request that raised an error.
    """

    extra: str
    package: str
    file_system: Callable[[float], Any]
    has_retried: Callable[[Exception], bool] = lambda error: False


SCHEMES: Mapping[str, Scheme] = {
    "s3": Scheme("s3", "s3fs", _s3_file_system),
    "gs": Scheme("gcs", "gcsfs", _gs_file_system, _is_retried_by_gcsfs),
    "az": Scheme("azure", "adlfs", _az_file_system),
}

_file_systems: dict[tuple[str, StorageOptions], Any] = {}
_lock = threading.Lock()


def file_system(scheme: str, options: StorageOptions) -> Any:
    """Return this process's fsspec file system of a scheme.

    Raises:
        StorageError: Its package is not installed, or the environment names no account.
    """
    with _lock:
        found = _file_systems.get((scheme, options))
        if found is None:
            found = _file_systems[scheme, options] = _create(scheme, options)
    return found


def _create(scheme: str, options: StorageOptions) -> Any:
    kind = SCHEMES[scheme]
    try:
        return kind.file_system(options.timeout_s)
    except ImportError as error:
        raise StorageError(
            f"{scheme}://: the package {kind.package} is not installed. Run pip install 'detcurate[{kind.extra}]'."
        ) from error
    except Exception as error:
        raise StorageError(
            f"{scheme}://: the environment does not say how to reach it ({_reason(error)}). See {_DOCUMENT}."
        ) from error


def request(call: Callable[[Any], Result], *, verb: str, url: str, scheme: str, options: StorageOptions) -> Result:
    """Return the result of a request; where it fails, try again after a pause that doubles, with a random part.

    Args:
        call: Sends the request once, with the file system that it is given.
        verb: What the request does, such as ``"read"``, for messages.
        url: URL of the object, for messages.
        scheme: Scheme of that URL.
        options: Number of retries and timeout.

    Raises:
        FileNotFoundError: There is no such object.
        StorageError: Access is denied, or the last attempt has failed.
    """
    attempts = 0
    while True:
        try:
            return call(file_system(scheme, options))
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", url) from error
        except Exception as error:
            attempts += 1
            _raise_if_permanent(error, verb, url)
            if attempts > options.retries or SCHEMES[scheme].has_retried(error):
                raise StorageError(
                    f"{url}: cannot {verb} it (got {_reason(error)} at attempt {attempts}). Run the same command again "
                    "to continue, or raise CURATE.STORAGE.RETRIES or CURATE.STORAGE.TIMEOUT_S."
                ) from error
        time.sleep(min(_FIRST_PAUSE_S * 2 ** (attempts - 1), _LONGEST_PAUSE_S) * _jitter.uniform(0.5, 1.0))


def _raise_if_permanent(error: Exception, verb: str, url: str) -> None:
    """Raise the error that a request means when the same request cannot succeed later."""
    if _is_denied(error):
        raise StorageError(
            f"{url}: access denied to {verb} it (got {_reason(error)}). Check the credentials of the environment and "
            "the rights of their account."
        ) from error
    if _is_one_of(error, _NO_CREDENTIALS):
        raise StorageError(f"{url}: no credentials in the environment to {verb} it. See {_DOCUMENT}.") from error
    status = _status_of(error)
    is_refused = status in _CLIENT_ERRORS and status not in _TRANSIENT
    # The packages raise a plain ValueError for an invalid endpoint or name; subclasses may come from a cut response.
    if is_refused or type(error) is ValueError or _is_one_of(error, _BAD_SETUP):
        raise StorageError(
            f"{url}: cannot {verb} it (got {_reason(error)}). Check the URL and the settings of the environment "
            f"({_DOCUMENT})."
        ) from error
    if isinstance(error, OSError) and error.errno in _LOCAL_ERRORS:
        raise error


def _is_denied(error: Exception) -> bool:
    # gcsfs raises a plain OSError for status 403, with no other sign than these words.
    is_forbidden = type(error) is OSError and str(error).startswith("Forbidden: ")
    response = getattr(error.__cause__, "response", None)  # botocore's, behind the error that s3fs makes of it
    s3_status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return isinstance(error, PermissionError) or is_forbidden or bool({_status_of(error), s3_status} & {*_DENIED})


def _status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error of gcsfs or Azure, or ``None``."""
    statuses = (getattr(error, name, None) for name in ("status_code", "code", "status"))
    return next((status for status in statuses if isinstance(status, int)), None)


def _is_one_of(error: Exception, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)  # by name: the packages may be absent


def _reason(error: BaseException) -> str:
    """Return the message of an error, without the values that the environment holds as secrets."""
    message = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    if message == "FSTimeoutError":
        message = "timeout"
    # Azure appends the body of the response, line by line; gcsfs may have no text before the status.
    first = re.split(r"\n(?:RequestId|ErrorCode|Content):", message)[0]
    text = re.sub(r"^, (?=\d+$)", "status ", " ".join(first.split()))
    text = re.sub(r"//[^/@\s]+@", "//…@", text).rstrip(".")
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET_LENGTH:
            text = text.replace(value, "…")
    return text


def _reset_after_fork() -> None:
    """Drop connections, and a lock that another thread may hold."""
    global _lock
    _lock = threading.Lock()
    _file_systems.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
