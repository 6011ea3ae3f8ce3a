"""A server with the few addresses of the Hugging Face Hub that uploading and downloading a model needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StubHub(ThreadingHTTPServer):
    """Keeps commits of files in memory: repository -> list of {name: content}, and what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.created: list[dict[str, object]] = []

    def files(self, repository: str, revision: str) -> dict[str, bytes]:
        """Returns the files of a revision: "main", or the name of a commit."""
        return self.commits[repository][-1 if revision == "main" else int(revision, 16) - 1]


@contextmanager
def stub_hub() -> Iterator[StubHub]:
    """Runs a hub in a thread until the block ends."""
    hub = StubHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(10)


def _commit_name(number: int) -> str:
    return f"{number:040x}"


class _Handler(BaseHTTPRequestHandler):
    server: StubHub

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def answer(self, content: bytes = b"", status: int = 200, **headers: str) -> None:
        """Sends an answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, content: object) -> None:
        """Sends JSON."""
        self.answer(json.dumps(content).encode(), Content_Type="application/json")

    def handle_request(self) -> None:
        """Answers a request by its path."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        for pattern, method in (
            (r"/api/models/(\w+/\w+)/preupload/main(?:\?.*)?", self.preupload),
            (r"/api/models/(\w+/\w+)/commit/main(?:\?.*)?", self.commit),
            (r"/api/models/(\w+/\w+)/revision/(\w+)(?:\?.*)?", self.revision),
            (r"/api/models/(\w+/\w+)/tree/(\w+)(?:\?.*)?", self.tree),
            (r"/(\w+/\w+)/resolve/(\w+)/([\w.]+)", self.resolve),
        ):
            if (found := re.fullmatch(pattern, self.path)) and (
                method == self.preupload or found[1] in self.server.commits
            ):
                return method(*found.groups(), *([body] if method in (self.preupload, self.commit) else []))
        return self.answer(status=404, X_Error_Code="RepoNotFound")

    do_GET = do_HEAD = do_POST = handle_request  # noqa: N815

    def create(self, about: dict[str, object]) -> None:
        """Makes a repository."""
        repository = f"{about['organization']}/{about['name']}"
        self.server.created.append(about)
        self.server.commits.setdefault(repository, [{}])
        self.answer_json({"url": f"{self.server.address}/{repository}"})

    def preupload(self, repository: str, body: bytes) -> None:
        """Asks for all files in the commit itself."""
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
        ]
        self.answer_json({"files": files})

    def commit(self, repository: str, body: bytes) -> None:
        """Adds a commit."""
        files = dict(self.server.commits[repository][-1])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.server.commits[repository].append(files)
        name = _commit_name(len(self.server.commits[repository]))
        self.answer_json({"commitOid": name, "commitUrl": f"{self.server.address}/{repository}/commit/{name}"})

    def revision(self, repository: str, revision: str) -> None:
        """Describes a revision."""
        number = len(self.server.commits[repository]) if revision == "main" else int(revision, 16)
        names = self.server.files(repository, revision)
        files = [{"rfilename": name} for name in names]
        self.answer_json({"id": repository, "sha": _commit_name(number), "siblings": files})

    def tree(self, repository: str, revision: str) -> None:
        """Lists the files of a revision."""
        files = self.server.files(repository, revision)
        self.answer_json(
            [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
        )

    def resolve(self, repository: str, revision: str, name: str) -> None:
        """Sends a file."""
        content = self.server.files(repository, revision)[name]
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(content, ETag=tag, X_Repo_Commit=revision)
