"""No network unless a URL is configured, and reports that show untrusted names as text."""

from __future__ import annotations

import socket

import pytest
from helpers.reported import write_pool, write_run

TAG = "<img src=x onerror=alert(1)>"


@pytest.fixture
def attempts(monkeypatch):
    """Let all attempts to resolve a host or to connect fail, and return the list of them."""
    found = []

    def refuse(*arguments: object, **_: object) -> None:
        found.append(arguments)
        raise OSError("no network here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return found


def test_commands_use_no_network(attempts, tmp_path, done):
    write_pool(tmp_path, "pool")
    done("validate", tmp_path / "pool.json", "--images", tmp_path / "images", "--num-processes", 1)
    _, output = write_run(tmp_path)
    done("report", output)
    done("manifest", "verify", output / "manifest")
    assert attempts == []


def test_blocked_network_records_attempts(attempts):
    with pytest.raises(OSError, match="no network here"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert attempts


def test_report_escapes_names_in_all_files(tmp_path, done):
    _, output = write_run(tmp_path, classes=(TAG, "=1+1", "car", "</script>"))
    done("report", output)
    for name in ("index.html", "summary.md"):
        text = (output / "report" / name).read_text()
        assert TAG not in text
    assert "'=1+1" in "".join(path.read_text() for path in (output / "report" / "data").glob("*.csv"))
