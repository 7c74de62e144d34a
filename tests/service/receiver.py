"""A local HTTP server that serves pictures and receives webhooks, with failures on demand."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from tests.waiting import until

COMPLETIONS = "/v1/chat/completions"
REWRITTEN = "Brighten the sky."


class Receiver(ThreadingHTTPServer):
    """Receives webhooks at `/NAME/STATUS,STATUS…`: each call gets the next status; the last one repeats. `/never` reads
    a request and does not answer. `pictures` holds the pictures to serve, by their paths. COMPLETIONS answers as a
    language model that rewrites every prompt to `REWRITTEN`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.pictures: dict[str, bytes] = {}
        self.closing = Event()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self, path: str, count: int, timeout_s: float = 20) -> list[dict[str, Any]]:
        """The bodies that this path received, once there are at least `count`."""
        until(lambda: sum(called == path for called, _ in self.calls) >= count, timeout_s)
        return [body for called, body in self.calls if called == path]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_GET(self) -> None:
        if self.path.startswith("/never"):
            self.server.closing.wait(60)
            return
        picture = self.server.pictures.get(self.path)
        self.send_response(404 if picture is None else 200)
        self.end_headers()
        self.wfile.write(picture or b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        before = sum(path == self.path for path, _ in self.server.calls)
        self.server.calls.append((self.path, body))
        if self.path.startswith("/never"):
            self.server.closing.wait(60)
            return
        if self.path == COMPLETIONS:
            content = json.dumps({"instruction": REWRITTEN})
            answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            return
        statuses = [int(status) for status in self.path.rpartition("/")[2].split(",")]
        self.send_response(statuses[min(before, len(statuses) - 1)])
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = Thread(target=receiver.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.closing.set()
            receiver.shutdown()
            thread.join()
