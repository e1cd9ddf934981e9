"""A judge behind a real HTTP server of this process, whose manners a test chooses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server answers: status, headers, body, and the seconds before each of its parts."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0
    parts: int = 1


def says(text: Any, **more: Any) -> Reply:
    """A chat completion."""
    return Reply(json.dumps({"choices": [{"message": {"role": "assistant", "content": text, **more}}]}).encode())


def refuses(status: int, message: str = "no", **headers: str) -> Reply:
    return Reply(json.dumps({"error": {"message": message}}).encode(), status, headers)


@dataclass
class Server:
    """A running server: where it is, and the requests it got, each (path, headers, content)."""

    url: str
    got: list[tuple[str, dict[str, str], dict[str, Any]]]


@contextmanager
def serving(reply: Callable[[int, dict[str, Any]], Reply | None]) -> Iterator[Server]:
    """Serves what a function of (number of the request, its content) makes; None hangs up without an answer."""
    got: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            got.append((self.path, dict(self.headers), content))
            made = reply(len(got), content)
            if made is None:
                self.close_connection = True
                return
            time.sleep(made.seconds if made.parts == 1 else 0)
            try:
                self.send_response(made.status)
                for name, value in made.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(made.body)))
                self.end_headers()
                size = max(1, -(-len(made.body) // made.parts))
                for start in range(0, len(made.body), size):
                    self.wfile.write(made.body[start : start + size])
                    self.wfile.flush()
                    time.sleep(made.seconds if made.parts > 1 else 0)
            except (BrokenPipeError, ConnectionResetError):  # who asked did not wait
                self.close_connection = True

        do_GET = do_POST

        def log_message(self, *about: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Server(f"http://127.0.0.1:{server.server_address[1]}/v1", got)
        finally:
            server.shutdown()
            thread.join()
