"""An S3 emulator on loopback, and a proxy before it that fails as object storage does."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "pool"
KEY_ID, SECRET = "AKIADETCURATETEST123", "a/very+secret/key-of-the-emulator-0123456"

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@dataclass
class Faults:
    """Faults of the proxy, and all requests: ``plan(method, path)`` returns the fault of a request, or ``None``.

    Faults: ``"slow_down"`` (status 503), ``"stall"`` (no response), ``"half"`` (half of the body with the length of the
    whole, then the end), ``"hang"`` (the same, then silence), ``"short"`` (half of the body with its own length),
    ``"reset"`` (the connection is reset), ``"denied"`` (403), ``"unauthorized"`` (401), ``"drip"`` (the body in pieces
    with pauses).
    """

    plan: Callable[[str, str], str | None] = lambda method, path: None
    stall_s: float = 3.0
    seen: list[tuple[str, str]] = field(default_factory=list)

    def first(self, count: int, fault: str, *, method: str = "GET", contains: str = "") -> None:
        """Let the first ``count`` requests of a kind fail."""
        left = [count]

        def plan(found: str, path: str) -> str | None:
            if found != method or contains not in path or not left[0]:
                return None
            left[0] -= 1
            return fault

        self.plan = plan

    def count(self, method: str, contains: str = "") -> int:
        """Return the number of requests of a kind."""
        return sum(found == method and contains in path for found, path in self.seen)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _forward(self) -> None:
        faults, behind = self.server.faults, self.server.behind
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        faults.seen.append((self.command, self.path))
        fault = faults.plan(self.command, self.path)
        if fault == "stall":
            time.sleep(faults.stall_s)
            self.close_connection = True
            return
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            return
        if fault in ("denied", "unauthorized"):
            self._respond(403 if fault == "denied" else 401, {}, b"", 0)
            return
        if fault == "slow_down":
            self._respond(503, {"Content-Type": "application/xml"}, SLOW_DOWN, len(SLOW_DOWN))
            return
        connection = HTTPConnection(*behind)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        skipped = ("content-length", "connection", "transfer-encoding", "date", "server")
        headers = {name: value for name, value in response.getheaders() if name.lower() not in skipped}
        connection.close()
        length = int(response.headers.get("Content-Length") or len(content))
        if fault in ("half", "hang", "short"):
            content = content[: len(content) // 2]
            headers = {name: value for name, value in headers.items() if not name.lower().startswith("x-amz-checksum")}
            length = len(content) if fault == "short" else length
            self.close_connection = True
        if fault == "drip":
            piece = len(content) // 3 + 1
            self._respond(response.status, headers, content[:piece], length)
            for start in range(piece, len(content), piece):
                time.sleep(faults.stall_s / 8)
                self.wfile.write(content[start : start + piece])
            return
        self._respond(response.status, headers, content, length)
        if fault == "hang":
            self.wfile.flush()
            time.sleep(faults.stall_s)

    def _respond(self, status: int, headers: dict[str, str], content: bytes, length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Log nothing: clients that give up are expected."""


@contextmanager
def faulty_server(behind: tuple[str, int]) -> Iterator[tuple[str, Faults]]:
    """Serve a proxy before an emulator; give its endpoint and faults."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.behind, server.faults = behind, Faults()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def boto(endpoint: str) -> boto3.client:
    """Return a client that is independent of the tested one."""
    return boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name="us-east-1"
    )


@contextmanager
def emulator() -> Iterator[tuple[str, int]]:
    """Serve moto's S3 on loopback; give host and port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()
