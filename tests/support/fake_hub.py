"""A stand-in for the hub's endpoints that an upload needs, on loopback: repositories, preupload, LFS, commits.

Bodies as huggingface_hub 0.36 sends and reads them. Content is stored by its hash, as the hub does; a request without
the token is refused.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from huggingface_hub.constants import ENDPOINT

LARGE = (".parquet", ".safetensors")


class FakeHub:
    """What the hub has, and what was asked of it."""

    def __init__(self, token: str):
        self.token, self.url, self.lock = token, "", Lock()
        self.repositories: dict[str, dict[str, Any]] = {}  # "datasets/owner/name" -> private, head, files
        self.stored: dict[str, bytes] = {}  # large files by sha256
        self.puts: list[str] = []
        self.commits: list[dict[str, Any]] = []
        self.fail_after: int | None = None  # large files that are taken before the storage fails

    def content(self, repo: str) -> dict[str, bytes]:
        """Files of a repository, large ones followed."""
        files = self.repositories[repo]["files"]
        return {path: self.stored[value] if isinstance(value, str) else value for path, value in files.items()}

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{body.get('type', 'model')}s/{body['organization']}/{body['name']}"
        if repo in self.repositories:
            return 409, {"error": "You already created this repo", "url": f"{self.url}/{repo}"}
        self.repositories[repo] = {"private": body.get("private", False), "head": "0" * 40, "files": {}}
        return 200, {"url": f"{self.url}/{repo}", "name": repo}

    def info(self, repo: str) -> dict[str, Any]:
        one = self.repositories[repo]
        return {
            "id": repo.partition("/")[2],
            "sha": one["head"],
            "private": one["private"],
            "siblings": [],
            "tags": [],
        }

    def tree(self, repo: str) -> list[dict[str, Any]]:
        entries = []
        for path, value in self.repositories[repo]["files"].items():
            if isinstance(value, str):
                size = len(self.stored[value])
                large = {"oid": value, "size": size, "pointerSize": 130}
                entries.append({"type": "file", "path": path, "size": size, "oid": "f" * 40, "lfs": large})
            else:
                blob = hashlib.sha1(b"blob %d\0" % len(value) + value).hexdigest()
                entries.append({"type": "file", "path": path, "size": len(value), "oid": blob})
        return entries

    def preupload(self, body: dict[str, Any]) -> dict[str, Any]:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in body["files"]
        ]
        return {"files": files}

    def batch(self, body: dict[str, Any]) -> dict[str, Any]:
        objects = []
        for one in body["objects"]:
            put = {"upload": {"href": f"{self.url}/storage/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.stored else {"actions": put})})
        return {"transfer": "basic", "objects": objects}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        one, header = self.repositories[repo], lines[0]["value"]
        if header.get("parentCommit") not in (None, one["head"]):
            return 412, {"error": "the head has moved"}
        files = dict(one["files"])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.stored, "a commit names content that was not sent"
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        one["files"], one["head"] = files, f"{len(self.commits) + 1:040d}"
        self.commits.append(header)
        # huggingface_hub reads HF_ENDPOINT once, when it is imported, and takes this address apart by that.
        return 200, {"commitUrl": f"{ENDPOINT}/{repo}/commit/{one['head']}", "commitOid": one["head"]}


def handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def refused(self) -> bool:
            if self.headers.get("Authorization") == f"Bearer {hub.token}":
                return False
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
            return True

        def do_GET(self) -> None:
            if self.refused():
                return
            repo, _, tree = self.path.partition("?")[0].removeprefix("/api/").partition("/tree/")
            if repo not in hub.repositories:
                self.answer(404, {"error": "Repository not found"})
            else:
                self.answer(200, hub.tree(repo) if tree else hub.info(repo))

        def do_PUT(self) -> None:
            content, name = self.body(), self.path.removeprefix("/storage/")
            assert hashlib.sha256(content).hexdigest() == name
            with hub.lock:
                full = hub.fail_after is not None and len(hub.puts) >= hub.fail_after
                if not full:
                    hub.stored[name] = content
                    hub.puts.append(name)
            self.answer(403 if full else 200, {"error": "the storage is full"} if full else {})

        def do_POST(self) -> None:
            content = self.body()
            if self.refused():
                return
            path = self.path.partition("?")[0]
            repo = path.removeprefix("/api/")
            if path == "/api/repos/create":
                self.answer(*hub.create(json.loads(content)))
            elif path == "/api/validate-yaml":
                self.answer(200, {"warnings": [], "errors": []})
            elif "/preupload/" in path:
                self.answer(200, hub.preupload(json.loads(content)))
            elif path.endswith(".git/info/lfs/objects/batch"):
                self.answer(200, hub.batch(json.loads(content)))
            else:
                lines = [json.loads(line) for line in content.splitlines()]
                self.answer(*hub.commit(repo.partition("/commit/")[0], lines))

    return Handler


@contextmanager
def fake_hub(token: str) -> Iterator[FakeHub]:
    """A hub that runs until the block ends."""
    hub = FakeHub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
