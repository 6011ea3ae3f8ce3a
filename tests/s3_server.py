"""A server with the addresses of S3, which can lose connections and stop answering."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class S3Server:
    """The WSGI application of moto, which keeps objects in memory, with a switch for faults."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.application = DomainDispatcherApplication(create_backend_app)
        self.uploaded: dict[str, str] = {}  # what the tests have put there: path -> tag
        self.read: list[str] = []  # paths of objects, in the order of the requests
        self.lost: str | None = None  # the connection is lost in the middle of objects with these letters in the path
        self.stalled: str | None = None  # nothing is sent of these until the server ends
        self.ended = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "GET" and path.count("/") > 1:
            self.read.append(path.lstrip("/"))
        if self.stalled is not None and self.stalled in path:
            self.ended.wait()
        answer = self.application(environ, start_response)
        return _half(answer) if self.lost is not None and self.lost in path else answer


def _half(answer: Any) -> Iterator[bytes]:
    content = b"".join(answer)
    yield content[: len(content) // 2]
    raise ConnectionResetError  # werkzeug closes the connection


@contextmanager
def s3_server(port: int = 0) -> Iterator[tuple[S3Server, str]]:
    """Runs a server in a thread until the block ends, and gives it with its address."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class QuietHandler(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            """Prints nothing."""

    server = S3Server()
    listener = make_server("127.0.0.1", port, server, threaded=True, request_handler=QuietHandler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{listener.port}"
    finally:
        server.ended.set()
        listener.shutdown()
        listener.server_close()
        thread.join(10)
