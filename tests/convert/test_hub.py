"""Hub ids, against a real HTTP server on loopback that speaks as much of the hub's protocol as the client needs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from jaxcircuits.bundle import load_bundle
from jaxcircuits.convert import convert
from tests.convert.foreign import autoencoder, hugging_face, save_mixin, save_old
from tests.convert.recorded import source
from tests.helpers import tiny_config, tiny_tokenizer
from tests.hub_server import Hub, commit_of, serving, with_hub

pytestmark = pytest.mark.torch


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as server:
        yield server


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
    return [(code, errors) for code, errors in with_hub(program, hub, home, calls, **environment)]


def test_models_and_autoencoders_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    save_old(hugging_face(), hub.root / "tiny" / "neo")
    for extra in ("README.md", "training_args.bin", "flax_model.msgpack", "rust/model.ot"):
        (hub.root / "tiny" / "neo" / extra).parent.mkdir(exist_ok=True)
        (hub.root / "tiny" / "neo" / extra).write_text("not needed")
    save_mixin(hub.root / "tiny" / "SAE-L1-291", autoencoder(), wandb_name=None)
    (hub.root / "tiny" / "SAE-L1-291" / "README.md").write_text("not needed")
    save_mixin(hub.root / "tiny" / "gated", autoencoder())
    hub.faults = {f"tiny/gated/{name}": "gated" for name in ("config.json", "model.safetensors")}
    (hub.root / "tiny" / "empty").mkdir()
    (hub.root / "tiny" / "empty" / "README.md").touch()
    cache = tmp_path / "home"
    good, missing, revision, gated, private, secret, broken, empty, twice = _convert(
        hub.url,
        cache,
        ["--model", "tiny/neo", "--revision", "v1", "--sae", "tiny/SAE-L1-291@main", "--out", "bundle"],
        ["--model", "tiny/nothing", "--out", "other"],
        ["--model", "tiny/neo@v2", "--out", "other"],
        ["--model", "tiny/neo", "--sae", "tiny/gated", "--out", "other"],
        ["--model", "tiny/private", "--out", "other"],
        ["--model", "tiny/secret", "--out", "other"],
        ["--model", "tiny/broken", "--out", "other"],
        ["--model", "tiny/neo", "--sae", "tiny/empty", "--out", "other"],
        ["--model", "tiny/neo@main", "--revision", "v1", "--out", "other"],
    )
    assert good == (0, ""), good[1]
    for result, sentence in (
        (
            missing,
            "there is no path tiny/nothing, and on the hub there is no repository tiny/nothing that you may read",
        ),
        (revision, "tiny/neo on the hub has no revision v2"),
        (gated, "tiny/gated is gated; accept its terms"),
        (private, "tiny/private is gated; accept its terms"),
        (secret, "the hub refused tiny/secret"),
        (secret, "log in with `hf auth login`"),
        (broken, "there is no path tiny/broken, and the hub is out of reach"),
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
    assert manifest["revision"] == commit_of(Path("neo"))
    assert manifest["saes"] == {"SAE-L1-291": f"tiny/SAE-L1-291@{commit_of(Path('SAE-L1-291'))}"}
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
    assert load_bundle("cached").manifest["revision"] == commit_of(Path("neo"))
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
    assert ours.manifest["saes"]["h.0"] == f"tiny/many/h.0@{commit_of(Path('many'))}"
    assert len(hub.served) == 7  # three of two files, and one archive

    hub.shutdown()
    hub.server_close()
    (cached,) = _convert(hub.url, cache, ["--model", model, *words, "--out", "cached"])
    assert cached == (0, ""), cached[1]
    assert load_bundle("cached").manifest["saes"] == ours.manifest["saes"]


def test_what_goes_wrong_on_the_way(hub: Hub, tmp_path: Path) -> None:
    """A revision stays what it was; a dropped connection is gone on from; what the hub did not announce is not used."""
    for tag, seed in (("", 0), ("@v1", 1)):
        model = hugging_face()
        model.transformer.wte.weight.add_(seed)
        model.save_pretrained(hub.root / "tiny" / f"neo{tag}")
        tiny_tokenizer(tiny_config()).save(str(hub.root / "tiny" / f"neo{tag}" / "tokenizer.json"))
    large = autoencoder(d_sae=150_000)  # of 25 MB: the client goes on from whole pieces of 10
    for name in ("dead", "dropped"):
        save_mixin(hub.root / "tiny" / name, large, wandb_name=None)
    for name in ("gone", "changed", "short", "damaged", "config"):
        save_mixin(hub.root / "tiny" / name, autoencoder(), wandb_name=None)
    (hub.root / "tiny" / "damaged" / "model.safetensors").write_bytes(b"not what safetensors begins with")
    faulty = ("dead", "dropped", "gone", "changed", "short")
    hub.faults = {f"tiny/{name}/model.safetensors": name for name in faulty} | {"tiny/config/config.json": "changed"}
    sentences = {
        "dead": "downloading tiny/dead from the hub failed (",
        "gone": "tiny/gone on the hub lists a file that it does not have (Entry Not Found for url: http://",
        "changed": "model.safetensors of tiny/changed is not what the hub announced (checksum ",
        "config": "config.json of tiny/config is not what the hub announced (checksum ",
        "short": "downloading tiny/short from the hub failed (Consistency check failed: file should be of size ",
        "damaged": "model.safetensors is damaged or no safetensors file (",
    }
    home = tmp_path / "home"
    tagged, dropped, *refused = _convert(
        hub.url,
        home,
        ["--model", "tiny/neo@v1", "--out", "tagged"],
        ["--model", "tiny/neo", "--sae", "tiny/dropped", "--out", "bundle"],
        *(["--model", "tiny/neo", "--sae", f"tiny/{name}", "--out", "other"] for name in sentences),
    )
    assert tagged == dropped == (0, "")
    for sentence, (code, error) in zip(sentences.values(), refused, strict=True):
        assert code == 2 and sentence in error and error.count("\n") == 1, error
    assert not Path("other").exists()
    (asked,) = [one for name, one in hub.ranges if name == "tiny/dropped/model.safetensors"]
    assert int(asked.removeprefix("bytes=").removesuffix("-")) > 0
    bundle, old = load_bundle("bundle"), load_bundle("tagged")
    assert np.array_equal(bundle.saes["dropped"].weights.W_dec, large["W_dec"])
    assert np.array_equal(bundle.tokenize("w3 w4"), [0, 3, 4])
    assert old.manifest["revision"] == commit_of(Path("neo@v1")) != bundle.manifest["revision"]
    assert not np.array_equal(bundle.params.W_U, old.params.W_U)

    # What went wrong left nothing behind; and what is there needs no network, by branch, tag or commit.
    words = [word for name in ("changed", "config", "short") for word in ("--sae", f"tiny/{name}")]
    offline = {"HF_HUB_OFFLINE": "1"}
    nothing, cached, commit = _convert(
        hub.url,
        home,
        ["--model", "tiny/neo", *words, "--out", "other"],
        ["--model", "tiny/neo@v1", "--sae", "tiny/dropped", "--out", "cached"],
        ["--model", "tiny/neo", "--revision", commit_of(Path("neo@v1")), "--out", "commit"],
        **offline,
    )
    assert (
        nothing[0] == 2 and "tiny/changed on the hub holds none of the known layouts; it is out of reach" in nothing[1]
    )
    assert cached == commit == (0, "")
    assert load_bundle("commit").manifest["sha256"] == load_bundle("tagged").manifest["sha256"]
    hub.faults = {}
    (mended,) = _convert(hub.url, home, ["--model", "tiny/neo", *words, "--out", "mended"])
    assert mended == (0, "")
    assert set(load_bundle("mended").saes) == {"changed", "config", "short"}
