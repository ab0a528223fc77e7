"""A local HTTP server that speaks as much of the Hugging Face Hub's protocol as publishing and reading a model take."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_written_by_the_tests"


@dataclass
class Hub:
    """Repositories by name, each with its files as of the last commit."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    cards: list[dict[str, Any]] = field(default_factory=list)

    def sha(self, repo: str) -> str:
        listed = json.dumps(sorted((n, hashlib.sha1(d).hexdigest()) for n, d in self.files[repo].items()))
        return hashlib.sha1(listed.encode()).hexdigest()


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None: ...

        def do_GET(self) -> None:
            self.answer()

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.reply(401, {"error": "Invalid username or password."})
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = (
                    f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                )
                hub.files.setdefault(name, {})
                hub.private[name] = asked.get("private") or asked.get("visibility") == "private"
                self.reply(200, {"url": f"{hub.url}/{name}"})
            elif path == "/api/validate-yaml":
                hub.cards.append(yaml.safe_load(json.loads(body)["content"].split("---")[1]))
                self.reply(200, {"errors": [], "warnings": []})
            elif path.endswith("/preupload/main"):
                asked = json.loads(body)["files"]
                self.reply(
                    200,
                    {
                        "files": [
                            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
                        ]
                    },
                )
            elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                repo = hub.files[found[1]]
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "header":
                        hub.messages.append(line["value"]["summary"])
                    elif line["key"] == "file":
                        repo[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                sha = hub.sha(found[1])
                self.reply(200, {"commitUrl": f"{hub.url}/{found[1]}/commit/{sha}", "commitOid": sha})
            else:
                self.reply(404, {})

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+|/tree/.+)?", path):
                repo, part = found[1], found[2] or ""
                if repo not in hub.files:
                    self.reply(404, {}, {"X-Error-Code": "RepoNotFound"})
                elif not part.endswith(("main", hub.sha(repo))) and part:
                    self.reply(404, {}, {"X-Error-Code": "RevisionNotFound"})
                elif part.startswith("/tree"):
                    listed = [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for name, data in hub.files[repo].items()
                    ]
                    self.reply(200, listed)
                else:
                    siblings = [{"rfilename": name} for name in hub.files[repo]]
                    self.reply(200, {"id": repo, "sha": hub.sha(repo), "siblings": siblings})
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                data = hub.files.get(found[1], {}).get(found[2])
                if data is None:
                    self.reply(404, {}, {"X-Error-Code": "EntryNotFound"})
                else:
                    self.send(data, {"X-Repo-Commit": hub.sha(found[1])})
            else:
                self.reply(404, {})

        def reply(self, status: int, tree: Any, headers: dict[str, str] | None = None) -> None:
            self.send(
                json.dumps(tree).encode(), {"Content-Type": "application/json", **(headers or {})}, status
            )

        def send(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
            etag = hashlib.sha1(data).hexdigest()
            if status == 200 and (
                asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            ):
                stop = min(int(asked[2] or len(data) - 1), len(data) - 1)
                headers["Content-Range"] = f"bytes {asked[1]}-{stop}/{len(data)}"
                data, status = data[int(asked[1]) : stop + 1], 206
            self.send_response(status)
            for key, value in {**headers, "ETag": f'"{etag}"', "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
