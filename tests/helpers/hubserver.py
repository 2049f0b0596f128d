"""A stand-in for the Hugging Face hub's HTTP interface: what downloading a model or a data set by commit needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from helpers.serving import serving

TOKEN = "hf_let_me_in"
API = re.compile(
    r"/api/(?:models/)?(?P<repo>(?:datasets/)?[^/]+/[^/]+?)"
    r"(?:/(?P<call>revision|tree)/(?P<revision>[^/?]+)(?P<folder>/[^?]*)?)?(?:\?.*)?$"
)
FILE = re.compile(r"/(?P<repo>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)$")


@dataclass
class Hub:
    """What the server serves, and what it was asked.

    `gated` repositories want TOKEN. `drops` maps a file name to the number of bytes after which the connection breaks,
    and `stalls` to those after which nothing more comes. Each happens once. Calls of `mute` (part of a path) are never
    answered, and those of `wrong` are answered with a page that is no hub's.
    """

    url: str = ""
    repos: dict[str, dict[str, Path]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    drops: dict[str, int] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    mute: str = ""
    wrong: str = ""
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def add(self, repo: str, directory: Path) -> str:
        """Serve `directory` as `repo` at a new commit, to which `main` points from now on; return the commit.

        A data set is "datasets/OWNER/NAME".
        """
        commit = hashlib.sha1(f"{repo}{len(self.repos.get(repo, {}))}".encode()).hexdigest()
        self.repos[repo] = self.repos.get(repo, {}) | {commit: directory, "main": directory}
        return commit

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables that point huggingface_hub here, with its cache under `home` and no token."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}

    def commit_of(self, repo: str, revision: str) -> str | None:
        revisions = self.repos[repo]
        return next((name for name, at in revisions.items() if name != "main" and at == revisions.get(revision)), None)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run the server on a free port until the block ends."""
    hub = Hub()
    with serving(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        try:
            yield hub
        finally:
            hub.closing.set()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        asked = API.match(self.path) or FILE.match(self.path)
        if self.hub.mute and self.hub.mute in self.path:
            self.hub.closing.wait()
            self.close_connection = True
        elif self.hub.wrong and self.hub.wrong in self.path:
            self._answer(200, b"<html>log in</html>", {"Content-Type": "text/html"})
        elif asked is None or asked["repo"] not in self.hub.repos:
            self._refuse(401, "RepoNotFound")
        elif asked["repo"] in self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "GatedRepo")
        elif (commit := self.hub.commit_of(asked["repo"], asked["revision"] or "main")) is None:
            self._refuse(404, "RevisionNotFound")
        elif asked.re is API and asked["call"] == "tree":
            self._list(self.hub.repos[asked["repo"]][commit], (asked["folder"] or "/")[1:])
        elif asked.re is API:
            self._describe(asked["repo"], commit)
        else:
            self._send_file(self.hub.repos[asked["repo"]][commit] / asked["name"], commit)

    def _describe(self, repo: str, commit: str) -> None:
        directory = self.hub.repos[repo][commit]
        names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        body = json.dumps({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in names]}).encode()
        self._answer(200, body, {"Content-Type": "application/json"})

    def _list(self, directory: Path, folder: str) -> None:
        entries = [
            {
                "path": path.relative_to(directory).as_posix(),
                "type": "file" if path.is_file() else "directory",
                "oid": hashlib.sha1(path.name.encode()).hexdigest(),
                "size": path.stat().st_size if path.is_file() else 0,
            }
            for path in sorted((directory / folder).rglob("*"))
        ]
        self._answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _send_file(self, path: Path, commit: str) -> None:
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        start = 0
        if asked := self.headers.get("Range"):
            self.hub.ranges.append(f"{path.name} {asked}")
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(206 if asked else 200, content[start:], headers, path.name)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.hub.drops:
            self.wfile.write(body[: self.hub.drops.pop(name)])
            self.close_connection = True
        elif name in self.hub.stalls:
            self.wfile.write(body[: self.hub.stalls.pop(name)])
            self.wfile.flush()
            self.hub.closing.wait()
            self.close_connection = True
        else:
            self.wfile.write(body)
