"""A hub on loopback that serves one repository, and faults on its way to the client."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

REPO = "owner/FastWan-QAD-1.3B"
COMMITS = tuple(hashlib.sha1(bytes([index])).hexdigest() for index in range(3))
"""Commits of a test's repository, oldest first."""

_LARGE = (".safetensors", ".pth", ".data", ".engine", ".onnx")
"""Suffixes of files that the hub stores as LFS and knows the SHA-256 of."""

Files = Mapping[str, bytes]


@dataclass
class StandInHub:
    """What the hub holds and how it misbehaves.

    Attributes:
        commits: files by commit.
        refs: commit by branch or tag.
        refusal: status and headers that every question about the repository gets.
        file_refusal: likewise for every file.
        spoil: by file, what becomes of its content on the way; its length is announced as it was.
        announced: by file, the length that is announced in place of its own.
        tells_hashes: whether listings have sizes and hashes.
        asked: paths of all requests, in their order.
    """

    commits: dict[str, Files]
    refs: dict[str, str] = field(default_factory=dict)
    refusal: tuple[int, Mapping[str, str]] | None = None
    file_refusal: tuple[int, Mapping[str, str]] | None = None
    spoil: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    announced: dict[str, int] = field(default_factory=dict)
    tells_hashes: bool = True
    asked: list[str] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file of a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def as_fetched(folder: Path, cache: Path) -> Path:
    """The hub's cache as after a download of what lies in a folder; returns the snapshot."""
    repository = cache / f"models--{REPO.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMITS[0]
    (repository / "blobs").mkdir(parents=True)
    for name, content in files_of(folder).items():
        blob = repository / "blobs" / digest_of(name, content)
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def large(name: str) -> bool:
    return name.endswith(_LARGE)


def digest_of(name: str, content: bytes) -> str:
    """How the hub names a content: by SHA-256 if it is large, else as git does."""
    if large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a client whose connection does not fit waits a second


@contextmanager
def serve(hub: StandInHub) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1; yields the address. `hub.stop` ends it sooner."""
    server = _Server(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    hub.stop = stop
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stop()
        thread.join()


def use(monkeypatch: pytest.MonkeyPatch, address: str, home: Path) -> None:
    """Have huggingface_hub ask `address`, keep its cache in `home`, and reach nothing else."""
    from huggingface_hub import constants

    values: dict[str, Any] = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    resolve = socket.getaddrinfo

    def only_loopback(host: Any, *rest: Any, **options: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"asked for {host}"
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", only_loopback)
    # The library waits a second before it asks again.
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``HF_HUB_OFFLINE=1``."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``HF_HUB_OFFLINE=0``."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def _handler(hub: StandInHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            api, files = f"/api/models/{REPO}", f"/{REPO}/resolve/"
            if path.startswith(api):
                self._describe(path[len(api) :])
            elif path.startswith(files):
                self._file(*path[len(files) :].split("/", 1))
            else:
                self._send(404, {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _describe(self, rest: str) -> None:
            """The answers to ``/revision/NAME``, ``/tree/NAME`` and nothing."""
            kind, _, name = rest.strip("/").partition("/")
            name = name or "main"
            commit = hub.refs.get(name, name)
            if hub.refusal is not None:
                return self._send(*hub.refusal)
            if commit not in hub.commits:
                return self._send(404, {"X-Error-Code": "RevisionNotFound"})
            entries = [self._entry(*item) for item in hub.commits[commit].items()]
            if kind == "tree":
                return self._json(
                    [{"type": "file", "path": e.pop("rfilename"), **e} for e in entries]
                )
            return self._json({"_id": "1", "id": REPO, "sha": commit, "siblings": entries})

        def _entry(self, name: str, content: bytes) -> dict[str, Any]:
            if not hub.tells_hashes:
                return {"rfilename": name, "oid": "", "size": len(content)}
            digest = digest_of(name, content)
            entry = {"rfilename": name, "oid": digest, "blobId": digest, "size": len(content)}
            if large(name):
                facts = {"sha256": digest, "oid": digest, "size": len(content), "pointerSize": 1}
                entry["lfs"] = facts
            return entry

        def _file(self, revision: str, name: str) -> None:
            commit = hub.refs.get(revision, revision)
            content = hub.commits.get(commit, {}).get(name)
            if hub.file_refusal is not None:
                return self._send(*hub.file_refusal)
            if content is None:
                return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            length = hub.announced.get(name, len(content))
            headers = {"ETag": f'"{digest_of(name, content)}"', "X-Repo-Commit": commit}
            return self._send(200, headers, hub.spoil.get(name, bytes)(content), length)

        def _json(self, answer: object) -> None:
            self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

        def _send(
            self,
            status: int,
            headers: Mapping[str, str],
            body: bytes = b"",
            length: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler
