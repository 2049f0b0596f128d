"""A stand-in for W&B's HTTP interface: the GraphQL calls and the file stream that wandb 0.31 and wandb-workspaces make.

What is answered was found by recording what they ask. `asked` keeps the names of the calls, so that a test sees them.
A call that is not known here is answered as W&B answers one that it does not know: 400 and an error.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from helpers.follower import untracked
from helpers.serving import serving
from helpers.world import ROOT

KEY = "k" * 40
ENTITY = "tester"
OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
STREAM = re.compile(r"/files/[^/]+/(?P<project>[^/]+)/(?P<run>[^/]+)/file_stream")
HISTORY, SUMMARY, EVENTS = "wandb-history.jsonl", "wandb-summary.json", "wandb-events.jsonl"


@dataclass
class HeldRun:
    """One run as the server holds it.

    Attributes:
        lines: {file of the stream: its lines by their place}. A line that is sent again replaces itself.
        rewritten: places of the history that were sent again with other content.
    """

    project: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    rewritten: list[int] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The points of the curve in the order of the stream, without W&B's own fields."""
        points = [json.loads(line) for _, line in sorted(self.lines.get(HISTORY, {}).items())]
        return [{name: value for name, value in point.items() if not name.startswith("_")} for point in points]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines.get(SUMMARY)
        found: dict[str, Any] = json.loads(lines[max(lines)]) if lines else {}
        return found

    def of(self, file: str) -> list[str]:
        return [line for _, line in sorted(self.lines.get(file, {}).items())]


@dataclass
class Artifact:
    """One version of an artifact. `manifest` has an entry for each of its files."""

    id: str
    type: str
    name: str
    digest: str
    run: str
    metadata: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


@dataclass
class Server:
    """What the server holds, and what it was asked. While `down` is set it breaks every connection.

    It refuses the calls whose names are in `refused`; the stream of curves is called "file_stream". While `mute` is set
    it leaves that one without an answer. `broken` counts the connections that it broke.
    """

    url: str = ""
    runs: dict[str, HeldRun] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    broken: int = 0
    down: threading.Event = field(default_factory=threading.Event)
    mute: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def environment(self, home: Path, key: str = KEY) -> dict[str, str]:
        """Return the variables that point wandb here, with no other account below `home`."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": key, "HOME": str(home), "NETRC": str(home / "none")}


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Return once `condition` holds. Raises TimeoutError after `seconds`, far more than a loaded machine needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds} s")
        time.sleep(0.05)


@contextmanager
def serve_wandb() -> Iterator[Server]:
    """Run the server on a free port of the loopback address until the block ends."""
    held = Server()
    with serving(type("Handler", (_Handler,), {"held": held})) as held.url:
        yield held


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline.wandb` with no variable of a tracker's but those in `environment`."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.wandb", *arguments],
        env=untracked() | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


class _Handler(BaseHTTPRequestHandler):
    held: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        # A process that ends leaves its connections as they are.
        with suppress(ConnectionError):
            super().handle()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.held.down.is_set():
            self.held.broken += 1
            self.close_connection = True
            return
        if self.path != "/graphql":
            self.held.asked.append(self.path)
        granted = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
        if not self.path.startswith("/storage/") and self.headers.get("Authorization") != granted:
            self._answer(401, {"errors": [{"message": "user is not logged in"}]})
            return
        stream = STREAM.fullmatch(self.path)
        while stream and self.held.mute.is_set():
            time.sleep(0.05)
        if stream and "file_stream" in self.held.refused:
            self._answer(404, {})
            return
        with self.held.lock:
            if self.path == "/graphql":
                self._graphql(json.loads(body))
            elif asked := STREAM.fullmatch(self.path):
                self._stream(asked["run"], json.loads(body))
            elif self.path.startswith("/storage/"):
                self._store(self.path.removeprefix("/storage/"), body)
            else:
                self._answer(404, {})

    do_PUT = do_GET = do_POST

    def _graphql(self, request: dict[str, Any]) -> None:
        named = OPERATION.search(request["query"])
        name = named[1] if named else "?"
        self.held.asked.append(name)
        answer = getattr(self, f"_on_{name}", None)
        if name in self.held.refused:
            self._answer(403, {"errors": [{"message": "permission denied"}]})
        elif answer is None:
            self._answer(400, {"errors": [{"message": f"unknown operation {name}"}]})
        else:
            self._answer(200, {"data": answer(request.get("variables") or {})})

    def _on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "user", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "admin": False}
        return {"viewer": viewer | {"flags": "{}", "teams": {"edges": []}, "apiKeys": {"edges": []}}}

    def _on_GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "user", "entity": ENTITY}}

    def _on_Run(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.held.runs.get(given["name"])
        if run is None:
            return {"project": {"run": None}}
        steps = [json.loads(line)["_step"] for line in run.of(HISTORY)]
        described = {
            "id": run.name,
            "projectId": 7,
            "tags": [],
            "name": run.name,
            "displayName": run.fields.get("displayName"),
            "sweepName": None,
            "state": "finished",
            "config": json.dumps(run.config),
            "group": run.fields.get("groupName"),
            "jobType": run.fields.get("jobType"),
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "description": None,
            "notes": None,
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(steps),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": {"lastStep": max(steps, default=-1), "sets": [], "keys": {}},
        }
        return {"project": {"run": described}}

    def _on_RunHistoryKeys(self, given: dict[str, Any]) -> dict[str, Any]:
        return self._on_Run(given)

    def _on_GetProjects(self, _: dict[str, Any]) -> dict[str, Any]:
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"edges": [], "pageInfo": page}}

    def _on_CreateProject(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"result": {"inserted": True}}

    def _on_upsertView(self, given: dict[str, Any]) -> dict[str, Any]:
        new = given["id"] is None
        view = given | {"id": given["id"] or f"view{len(self.held.reports)}", "updatedAt": "2026-01-01T00:00:00Z"}
        self.held.reports = [one for one in self.held.reports if one["id"] != view["id"]] + [view]
        project = {"id": "project", "name": given["projectName"], "entityName": given["entityName"]}
        return {"upsertView": {"view": view | {"project": project}, "inserted": new}}

    def _on_RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.held.runs.get(given["name"])
        bucket = None
        if run is not None:
            bucket = {
                "id": run.name,
                "name": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.fields.get("displayName"),
                "logLineCount": 0,
                "historyLineCount": len(run.of(HISTORY)),
                "eventsLineCount": len(run.of(EVENTS)),
                "historyTail": json.dumps(run.of(HISTORY)[-1:]),
                "eventsTail": json.dumps(run.of(EVENTS)[-1:]),
                "config": json.dumps(run.config),
                "tags": [],
                "notes": None,
                "wandbConfig": json.dumps({"t": run.config.get("_wandb", {}).get("value", {}).get("t")}),
            }
        project = {"id": given["project"], "name": given["project"], "entity": {"id": ENTITY, "name": ENTITY}}
        return {"model": project | {"bucket": bucket}}

    def _on_UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        new = given["name"] not in self.held.runs
        run = self.held.runs.setdefault(given["name"], HeldRun(given["project"], given["name"]))
        run.fields |= {name: value for name, value in given.items() if value is not None}
        run.config |= json.loads(given.get("config") or "{}")
        bucket = {
            "id": run.name,
            "name": run.name,
            "displayName": run.fields.get("displayName"),
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {"id": run.project, "name": run.project, "entity": {"id": ENTITY, "name": ENTITY}},
            "historyLineCount": len(run.of(HISTORY)),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _on_CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.held.url}/storage/run/{given['run']}/{name}"} for name in given["files"]
        ]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _on_RunState(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"state": "running"}}}

    def _on_CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = given["input"]
        name = asked["artifactCollectionNames"][0] if asked.get("artifactCollectionNames") else asked.get("name", "")
        digest = asked["digest"]
        found = next((one for one in self.held.artifacts if (one.name, one.digest) == (name, digest)), None)
        if found is None:
            found = Artifact(
                id=f"artifact{len(self.held.artifacts)}",
                type=asked["artifactTypeName"],
                name=name,
                digest=digest,
                run=asked.get("runName") or "",
                metadata=json.loads(asked.get("metadata") or "{}"),
            )
            self.held.artifacts.append(found)
        sequence = {"id": f"sequence-{name}", "latestArtifact": None}
        state = "COMMITTED" if found.committed else "PENDING"
        return {"createArtifact": {"artifact": {"id": found.id, "state": state, "artifactSequence": sequence}}}

    def _on_CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": {"artifactManifest": self._manifest(given["artifactID"])}}

    def _on_UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(given["artifactManifestID"])}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        url = f"{self.held.url}/storage/manifest/{artifact}"
        file = {"id": artifact, "name": "wandb_manifest.json", "displayName": "wandb_manifest.json"}
        return {"id": artifact, "file": file | {"uploadUrl": url, "uploadHeaders": []}}

    def _on_CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for file in given["input"]["artifactFiles"]:
            url = f"{self.held.url}/storage/artifact/{file['artifactID']}/{file['name']}"
            node = {"id": file["name"], "name": file["name"], "displayName": file["name"], "storagePath": file["name"]}
            node |= {"uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": node | {"artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self._artifact(given["artifactID"])
        found.committed = True
        return {"commitArtifact": {"artifact": {"id": found.id, "digest": found.digest}}}

    def _artifact(self, name: str) -> Artifact:
        return next(one for one in self.held.artifacts if one.id == name)

    def _stream(self, name: str, sent: dict[str, Any]) -> None:
        run = self.held.runs[name]
        for file, chunk in (sent.get("files") or {}).items():
            lines = run.lines.setdefault(file, {})
            for place, line in enumerate(chunk["content"], start=chunk["offset"]):
                if file == HISTORY and lines.get(place, line) != line:
                    run.rewritten.append(place)
                lines[place] = line
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
        self._answer(200, {"exitcode": None, "limits": {}})

    def _store(self, path: str, body: bytes) -> None:
        kind, owner, *rest = path.split("/", 2)
        if kind == "manifest":
            self._artifact(owner).manifest = json.loads(body)["contents"]
        elif kind == "artifact":
            self._artifact(owner).files[rest[0]] = body
        else:
            self.held.runs[owner].files[rest[0]] = body
        self._answer(200, {}, {"ETag": hashlib.md5(body).hexdigest()})

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)
