"""The kinds of storage: how the package that speaks each is set up to ask once, and which of its errors mean what."""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_DENIED = (401, 403)
_CLIENT_ERRORS, _TRANSIENT = range(400, 500), (408, 429)
_BAD_SETUP = ("ProfileNotFound", "ConfigParseError", "InvalidConfigError", "NoRegionError", "ParamValidationError")
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "CredentialUnavailableError",
    "ClientAuthenticationError",  # Azure's, where there was no answer to be denied by
)


@dataclass(frozen=True)
class Kind:
    """A kind of storage.

    Args:
        extra: What of detcurate to install for it.
        package: Which package speaks it.
        new_client: Makes its fsspec file system, without a cache of listings and with one attempt a request, for a
            time in seconds that a connection may be silent.
    """

    extra: str
    package: str
    new_client: Callable[[float], Any]


# Not fsspec's own instances, of which each thread would get one.
_OWN: Mapping[str, bool] = {"skip_instance_cache": True, "use_listings_cache": False}


def _s3(timeout_s: float) -> Any:
    import fsspec

    timeouts = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
    # One attempt a request: botocore's and s3fs's own retries would multiply with ours.
    config = {**timeouts, "retries": {"total_max_attempts": 1}, "max_pool_connections": 64}
    found = fsspec.filesystem("s3", **_OWN, config_kwargs=config)
    found.retries = 1
    return found


def _gs(timeout_s: float) -> Any:
    import aiohttp

    # gcsfs's other class first asks by gRPC of what kind a bucket is: each time, and with a warning, where it may not.
    file_system = importlib.import_module("gcsfs.core").GCSFileSystem

    # A plain number would bound the whole of a request, and so the size of what can be sent.
    silence = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    found = file_system(**_OWN, requests_timeout=silence)
    for name in ("_request", "_get_file_request", "_get_file_concurrent"):
        once = getattr(getattr(found, name, None), "__wrapped__", None)  # below its own six attempts
        if once is not None:
            setattr(found, name, types.MethodType(once, found))
    return found


def _az(timeout_s: float) -> Any:
    import fsspec

    found = fsspec.filesystem("az", **_OWN, connection_timeout=timeout_s, read_timeout=timeout_s)
    # adlfs hands no settings on to Azure's client, whose pauses are of 15 s and more, nor timeouts for listings.
    with contextlib.suppress(AttributeError):  # where a release has them elsewhere its attempts multiply with ours
        config = found.service_client._config
        config.retry_policy.total_retries = 0
        config.transport.connection_config.timeout = config.transport.connection_config.read_timeout = timeout_s
    return found


KINDS: Mapping[str, Kind] = {
    "s3": Kind("s3", "s3fs", _s3),
    "gs": Kind("gcs", "gcsfs", _gs),
    "az": Kind("azure", "adlfs", _az),
}
"""The schemes of URLs that are object storage."""


def is_denied(error: Exception) -> bool:
    """Tell whether an error says that the environment's credentials may not do what was asked."""
    # gcsfs makes an OSError of a 403, with nothing but these words.
    forbidden = type(error) is OSError and str(error).startswith("Forbidden: ")
    return isinstance(error, PermissionError) or forbidden or status_of(error) in _DENIED


def lacks_credentials(error: Exception) -> bool:
    """Tell whether an error says that the environment holds no credentials."""
    return _is_one_of(error, _NO_CREDENTIALS)


def is_final(error: Exception) -> bool:
    """Tell whether a request would fail again: the storage refuses it as such, or it cannot even be asked."""
    status = status_of(error)
    is_refused = status in _CLIENT_ERRORS and status not in _TRANSIENT
    # A plain ValueError is the packages' word for an endpoint or name that is none; its kinds may be of a cut answer.
    return is_refused or type(error) is ValueError or _is_one_of(error, _BAD_SETUP)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status that an error of gcsfs or Azure carries, or ``None``."""
    for name in ("status_code", "code", "status"):
        status = getattr(error, name, None)
        if isinstance(status, int):
            return status
    return None


def _is_one_of(error: Exception, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)  # by name: the packages may be absent
