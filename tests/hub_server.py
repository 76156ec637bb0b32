"""A real HTTP server on loopback that speaks as much of the hub's protocol as its client needs, and can misbehave."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = (".safetensors", ".bin", ".npz", ".parquet")
"""Files that the hub keeps elsewhere: it answers with their SHA-256 and an address of another host."""


class Hub(ThreadingHTTPServer):
    """Repositories are directories `root/owner/name`, data sets `root/datasets/owner/name`.

    The branch `main` and the tag `v1` are one commit, unless there is `root/owner/name@v1` with what the tag holds.

    Attributes:
        served: Files that were sent, in order.
        ranges: For each that was asked for in part, the file and the range.
        faults: What goes wrong, by file: `gone`, `gated`, `changed` (other bytes of the same number), `short`,
            `dropped` (the connection, amid the file, once), `dead` (dropped, and then refused).
    """

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.root = root
        self.served: list[str] = []
        self.ranges: list[tuple[str, str]] = []
        self.faults: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def revision(self, repo: str, revision: str) -> tuple[Path, str] | None:
        """The directory and the commit of a repository at a branch, tag or commit."""
        for tag in ("main", "v1"):
            directory = self.root / (f"{repo}@{tag}" if (self.root / f"{repo}@{tag}").is_dir() else repo)
            if revision in (tag, commit_of(directory)):
                return directory, commit_of(directory)
        return None


def commit_of(directory: Path) -> str:
    """The commit that a directory stands for."""
    return hashlib.sha1(directory.name.encode()).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "elsewhere":
            return self._content("/".join(parts[1:]))
        api, parts = parts[0] == "api", parts[1:] if parts[0] == "api" else parts
        kind = {"models": "", "datasets": "datasets/"}.get(parts[0])
        parts = parts if kind is None else parts[1:]
        repo = f"{kind or ''}{'/'.join(parts[:2])}"
        if not api and parts[2:3] == ["resolve"]:
            return self._file(repo, parts[3], "/".join(parts[4:]))
        if api and parts[2:3] in (["tree"], ["revision"], []):
            return self._describe(repo, parts[3] if parts[2:] else "main", tree=parts[2:3] == ["tree"])
        return self._fail(404, "EntryNotFound")

    def _describe(self, repo: str, revision: str, tree: bool) -> None:
        refused = {"tiny/private": (403, "GatedRepo"), "tiny/broken": (500, ""), "tiny/secret": (403, "")}
        if repo in refused:
            return self._fail(*refused[repo])
        if not (self.server.root / repo).is_dir():
            return self._fail(404, "RepoNotFound")
        found = self.server.revision(repo, revision)
        if found is None:
            return self._fail(404, "RevisionNotFound")
        directory, commit = found
        files = [(file, file.relative_to(directory).as_posix()) for file in sorted(directory.rglob("*"))]
        files = [(file, name) for file, name in files if file.is_file()]
        if tree:
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": git_hash(file.read_bytes())}
                for file, name in files
            ]
            return self._send(json.dumps(entries).encode())
        name = repo.removeprefix("datasets/")
        about = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for _, file in files], "tags": []}
        return self._send(json.dumps(about | {"modelId": name, "downloads": 0, "private": False}).encode())

    def _file(self, repo: str, revision: str, name: str) -> None:
        found = self.server.revision(repo, revision)
        if found is None or not (found[0] / name).is_file() or self._fault(f"{repo}/{name}") == "gone":
            return self._fail(404, "EntryNotFound")
        if self._fault(f"{repo}/{name}") == "gated":  # anyone may list its files
            return self._fail(403, "GatedRepo")
        directory, commit = found
        content, about = (directory / name).read_bytes(), {"X-Repo-Commit": commit}
        if not name.endswith(LARGE):
            self._note(f"{repo}/{name}")
            if self._fault(f"{repo}/{name}") == "changed":
                content, about["ETag"] = content[:-1] + b" ", f'"{git_hash(content)}"'
            return self._send(content, {"ETag": f'"{git_hash(content)}"'} | about)
        about |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        place = directory.relative_to(self.server.root).as_posix()
        about["Location"] = f"http://localhost:{self.server.server_address[1]}/elsewhere/{place}/{name}"
        return self._send(b"", about, status=302)

    def _content(self, name: str) -> None:
        """A large file, from the other host."""
        content, fault = (self.server.root / name).read_bytes(), self._fault(name)
        asked = self.headers.get("Range")
        if asked and fault == "dead":
            return self._fail(403, "")
        self._note(name)
        if fault == "changed":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault == "short":
            return self._send(content[: len(content) // 2])
        if asked:
            self.server.ranges.append((name, asked))
            first = int(asked.removeprefix("bytes=").split("-")[0])
            about = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
            return self._send(content[first:], about, status=206)
        return self._send(content, {"Accept-Ranges": "bytes"}, cut=fault in ("dropped", "dead"))

    def _fault(self, name: str) -> str | None:
        return self.server.faults.get(name)

    def _note(self, name: str) -> None:
        if self.command == "GET":
            self.server.served.append(name)

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(
        self, content: bytes, headers: dict[str, str] | None = None, *, status: int = 200, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """A hub with the repositories of a directory."""
    with Hub(root) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def with_hub(program: str, hub: str, home: Path, argument: Any, **environment: str) -> Any:
    """Runs a program in a process of its own, since the hub's client reads its environment once.

    Args:
        program: It finds `argument` in `sys.argv[1]`, as JSON, and prints JSON last.
        hub: The hub's address.
        home: Where the client keeps its cache.
        argument: For the program.
        **environment: Variables to set.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    variables |= {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    run = subprocess.run(
        [sys.executable, "-c", program, json.dumps(argument)],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])
