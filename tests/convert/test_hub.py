"""Hub ids, against a real HTTP server on loopback that speaks as much of the hub's protocol as the client needs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from jaxcircuits.bundle import load_bundle
from jaxcircuits.convert import convert
from tests.convert.foreign import autoencoder, hugging_face, save_mixin, save_old
from tests.convert.recorded import source

pytestmark = pytest.mark.torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories are directories `root/owner/name`; the branch `main` and the tag `v1` are one commit."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.root = root
        self.served: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def _sha1(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:5] == ["tree"]:
            return self._tree(self.server.root / "/".join(parts[2:4]))
        if parts[:2] == ["api", "models"]:
            return self._describe("/".join(parts[2:4]), parts[5] if parts[4:5] == ["revision"] else "main")
        if parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), "/".join(parts[4:]))
        return self._fail(404, "EntryNotFound")

    def _describe(self, repo: str, revision: str) -> None:
        if repo == "tiny/private":
            return self._fail(403, "GatedRepo")
        if repo == "tiny/broken":
            return self._fail(500, "")
        if not (self.server.root / repo).is_dir():
            return self._fail(404, "RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self._fail(404, "RevisionNotFound")
        names = sorted(
            p.relative_to(self.server.root / repo).as_posix()
            for p in (self.server.root / repo).rglob("*")
            if p.is_file()
        )
        about = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        return self._send(json.dumps(about | {"tags": [], "downloads": 0, "private": False}).encode())

    def _tree(self, path: Path) -> None:
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        entries = [
            {"type": "file", "path": file.relative_to(path).as_posix(), "size": file.stat().st_size, "oid": _sha1(file)}
            for file in files
        ]
        return self._send(json.dumps(entries).encode())

    def _file(self, repo: str, name: str) -> None:
        file = self.server.root / repo / name
        if not file.is_file():
            return self._fail(404, "EntryNotFound")
        if repo == "tiny/gated":  # anyone may list its files
            return self._fail(403, "GatedRepo")
        if self.command == "GET":
            self.server.served.append(f"{repo}/{name}")
        return self._send(file.read_bytes(), {"ETag": f'"{_sha1(file)}"', "X-Repo-Commit": COMMIT})

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _convert(hub: str, home: Path, *calls: list[str], **environment: str) -> list[tuple[int, str]]:
    """Runs the command line several times in one process of its own: exit codes and what went to stderr."""
    program = """
import contextlib, io, json, sys
from jaxcircuits.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        results.append([main(["convert", "--quiet", *arguments]), errors.getvalue()])
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(json.dumps(results))
"""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    variables |= {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    run = subprocess.run(
        [sys.executable, "-c", program, json.dumps(calls)], env=variables, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return [(code, errors) for code, errors in json.loads(run.stdout.splitlines()[-1])]


def test_models_and_autoencoders_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    save_old(hugging_face(), hub.root / "tiny" / "neo")
    for extra in ("README.md", "training_args.bin", "flax_model.msgpack", "rust/model.ot"):
        (hub.root / "tiny" / "neo" / extra).parent.mkdir(exist_ok=True)
        (hub.root / "tiny" / "neo" / extra).write_text("not needed")
    save_mixin(hub.root / "tiny" / "SAE-L1-291", autoencoder(), wandb_name=None)
    (hub.root / "tiny" / "SAE-L1-291" / "README.md").write_text("not needed")
    save_mixin(hub.root / "tiny" / "gated", autoencoder())
    (hub.root / "tiny" / "empty").mkdir()
    (hub.root / "tiny" / "empty" / "README.md").touch()
    cache = tmp_path / "home"
    good, missing, revision, gated, private, broken, empty, twice = _convert(
        hub.url,
        cache,
        ["--model", "tiny/neo", "--revision", "v1", "--sae", "tiny/SAE-L1-291@main", "--out", "bundle"],
        ["--model", "tiny/nothing", "--out", "other"],
        ["--model", "tiny/neo@v2", "--out", "other"],
        ["--model", "tiny/neo", "--sae", "tiny/gated", "--out", "other"],
        ["--model", "tiny/private", "--out", "other"],
        ["--model", "tiny/broken", "--out", "other"],
        ["--model", "tiny/neo", "--sae", "tiny/empty", "--out", "other"],
        ["--model", "tiny/neo@main", "--revision", "v1", "--out", "other"],
    )
    assert good == (0, ""), good[1]
    for result, sentence in (
        (missing, "on the hub no repository tiny/nothing that you may read"),
        (revision, "tiny/neo on the hub has no revision v2"),
        (gated, "tiny/gated is gated; accept its terms"),
        (private, "tiny/private is gated; accept its terms"),
        (broken, "the hub refused tiny/broken"),
        (empty, "tiny/empty on the hub holds none of the known layouts; its files are README.md"),
        (twice, "names one revision and --revision v1 another"),
    ):
        assert result[0] == 2
        assert sentence in result[1]
        assert result[1].count("\n") == 1
    assert not Path("other").exists()

    convert(str(hub.root / "tiny" / "neo"), [str(hub.root / "tiny" / "SAE-L1-291")], "local")
    bundle, local = load_bundle("bundle"), load_bundle("local")
    assert list(bundle.saes) == list(local.saes) == ["SAE-L1-291"]
    assert bundle.cfg == local.cfg
    assert np.array_equal(bundle.params.W_U, local.params.W_U)
    assert np.array_equal(bundle.saes["SAE-L1-291"].weights.W_dec, local.saes["SAE-L1-291"].weights.W_dec)
    manifest = bundle.manifest
    assert manifest["source"] == "tiny/neo"
    assert manifest["revision"] == COMMIT
    assert manifest["saes"] == {"SAE-L1-291": f"tiny/SAE-L1-291@{COMMIT}"}
    assert manifest["source_sha256"] == local.manifest["source_sha256"]
    assert sorted(hub.served) == [
        *("tiny/SAE-L1-291/config.json", "tiny/SAE-L1-291/model.safetensors"),
        *("tiny/neo/config.json", "tiny/neo/pytorch_model.bin"),
    ]

    # Without network: what the cache holds is used, what it does not hold is one sentence.
    hub.shutdown()
    hub.server_close()
    cached, absent = _convert(
        hub.url, cache, ["--model", "tiny/neo@v1", "--out", "cached"], ["--model", "tiny/other", "--out", "other"]
    )
    assert cached == (0, ""), cached[1]
    assert load_bundle("cached").manifest["revision"] == COMMIT
    assert absent[0] == 2
    assert "there is no path tiny/other, and the hub is out of reach" in absent[1]


def test_a_path_that_exists_wins_over_a_hub_id(tmp_path: Path) -> None:
    hugging_face().save_pretrained(tmp_path / "tiny" / "neo")
    save_mixin(tmp_path / "tiny" / "sae", autoencoder())
    convert("tiny/neo", ["tiny/sae"], "bundle")
    assert "revision" not in load_bundle("bundle").manifest


def test_folders_of_repositories(hub: Hub, model: str, tmp_path: Path) -> None:
    """Each SAE has a folder of its repository; none of the others' files are fetched."""
    gemma = "layer_0/width_16k/average_l0_71"
    places = {
        "many/deep/blocks": "sae_lens_6/topk",
        "many/h.0": "sparsify/topk",
        "many/trainer_0": "dictionary_learning/gated",
        f"gemma-scope-2b-pt-res/{gemma}": "gemma_scope/res",
    }
    for place, sample in places.items():
        shutil.copytree(source(sample).path, hub.root / "tiny" / place)
    (hub.root / "tiny" / "many" / "deep" / "blocks" / "README.md").touch()
    cache = tmp_path / "home"
    words = [word for place in places for word in ("--sae", f"tiny/{place}@main")]
    good, nowhere, folder = _convert(
        hub.url,
        cache,
        ["--model", model, *words, "--out", "bundle"],
        ["--model", model, "--sae", "tiny/many/nothing", "--out", "other"],
        ["--model", "tiny/many/deep", "--out", "other"],
    )
    assert good == (0, ""), good[1]
    assert nowhere[0] == folder[0] == 2
    assert "nothing of tiny/many on the hub holds none of the known layouts" in nowhere[1]
    assert "model: there is no path tiny/many/deep, and a hub id looks like" in folder[1]
    convert(model, [source(sample) for sample in places.values()], "local")
    ours, theirs = load_bundle("bundle"), load_bundle("local")
    names = {"blocks": "topk", "h.0": "h.0", "trainer_0": "trainer_0", gemma.replace("/", "."): gemma.replace("/", ".")}
    for name, local in names.items():
        assert np.array_equal(ours.saes[name].weights.W_enc, theirs.saes[local].weights.W_enc)
        assert ours.saes[name].cfg == theirs.saes[local].cfg
    assert ours.manifest["saes"]["h.0"] == f"tiny/many/h.0@{COMMIT}"
    assert len(hub.served) == 7  # three of two files, and one archive

    hub.shutdown()
    hub.server_close()
    (cached,) = _convert(hub.url, cache, ["--model", model, *words, "--out", "cached"])
    assert cached == (0, ""), cached[1]
    assert load_bundle("cached").manifest["saes"] == ours.manifest["saes"]
