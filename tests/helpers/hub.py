"""A hub of one process: it answers what an upload asks, and keeps what it was sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a_token_of_the_tests"  # it opens nothing


@dataclass
class FakeHub:
    """What was asked of it, and what it holds."""

    url: str = ""
    role: str = "write"
    refuses_commits: bool = False
    asked: list[str] = field(default_factory=list)
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub on a port of this machine while the block runs."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(_get(hub, self.path, self.headers.get("Authorization")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(_post(hub, self.path, body))

        def _answer(self, found: tuple[int, Any]) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            code, document = found
            data = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _get(hub: FakeHub, path: str, authorization: str | None) -> tuple[int, Any]:
    if path == "/api/whoami-v2":
        if authorization != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        token = {"accessToken": {"role": hub.role}}
        return 200, {"name": "jane", "orgs": [{"name": "shop"}], "auth": token}
    return 404, {"error": f"not found: {path}"}


def _post(hub: FakeHub, path: str, body: bytes) -> tuple[int, Any]:
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'jane'}/{asked['name']}"
        if name in hub.repositories:
            return 409, {"error": "exists", "url": f"{hub.url}/{name}"}
        hub.repositories[name] = asked
        return 200, {"url": f"{hub.url}/{name}", "name": name}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if "/preupload/" in path:
        files = json.loads(body)["files"]
        modes = {"uploadMode": "regular", "shouldIgnore": False}
        return 200, {"files": [{"path": one["path"], **modes} for one in files]}
    if "/commit/" in path:
        if hub.refuses_commits:
            return 403, {"error": "Storage limit reached"}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                hub.files[value["path"]] = base64.b64decode(value["content"])
        repository = path.removeprefix("/api/models/").partition("/commit/")[0]
        url = f"{hub.url}/{repository}/commit/{'0' * 40}"
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": "",
                     "pullRequestUrl": None}  # fmt: skip
    return 404, {"error": f"not found: {path}"}
