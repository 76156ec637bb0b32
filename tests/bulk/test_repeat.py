"""A run once more from its `run.json`: the same bytes, in another process too, or a sentence on what is other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcircuits import InputError, Settings
from jaxcircuits.bulk import attribute_to_run, read_prompts, repeat_run
from jaxcircuits.bundle import Bundle
from jaxcircuits.cli import main
from tests.bulk.test_resume import everything
from tests.helpers import saved_bundle, tiny_config

TEXTS = ["w3 w4 w5", "w9 w8", "w1 w2 w3 w4 w5 w6", "w11", "w7 " * 40]


def write_corpus() -> None:
    Path("corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))


def command(*options: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": os.path.abspath("cache")}
    line = [sys.executable, "-m", "jaxcircuits", "attribute", *options]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(bundle_path: Path) -> None:
    """With what was left out, statistics and activations."""
    write_corpus()
    options = ("--bundle", str(bundle_path), "--corpus", "corpus.jsonl", "--skip-bad", "--activations", "--quiet")
    made = command(*options, "--memory", "1MB", "--out", "run")
    assert made.returncode == 0, made.stderr
    Path("corpus.jsonl").unlink()
    again = command("--repeat", "run/run.json", "--out", "again", "--show", "0")
    assert again.returncode == 0, again.stderr
    expected = everything("run")
    assert everything("again") == expected
    assert {"prompts.parquet", "statistics.parquet", "activations/part-00000.parquet"} < set(expected)
    assert again.stdout.endswith(f"equal: all {len(expected) - 1} files have the bytes that run/run.json records\n")
    assert again.stderr == made.stderr and "left out: prompt 4" in again.stderr


@pytest.fixture
def run(bundle: Bundle, two_prompts_a_part: None) -> dict:
    write_corpus()
    prompts = read_prompts(bundle, corpus="corpus.jsonl", truncate=True)
    settings = Settings(positions="all", derivative="integrated", baseline="mean", points=2)
    return dict(attribute_to_run(bundle, settings, prompts, "run", targets=[(-1, 3)], quiet=True)[0].record)


def test_what_is_gone_is_found_elsewhere(run: dict, bundle_path: Path) -> None:
    moved = shutil.copytree(bundle_path, "moved")
    Path("run/prompts.parquet").unlink()  # the corpus is read again
    for i, where in enumerate(("run", "run/run.json")):
        repeated = repeat_run(where, f"again-{i}", bundle=moved, quiet=True)
        assert repeated.different == [] and repeated.files == 2 + 2 * len(run["parts"]) == 8
    assert json.loads(Path("again-0/run.json").read_text())["plan"] == run["plan"]
    with open("corpus.jsonl", "a") as file:
        file.write('\n{"text": "w1"}')
    with pytest.raises(InputError, match=r"the corpus corpus.jsonl is not the one that the run read, and there is no"):
        repeat_run("run", "again")
    shutil.copytree("again-0", "run", dirs_exist_ok=True)
    assert repeat_run("run", "again-0", bundle=moved, quiet=True, overwrite=True).different == []


def change(**fields: object) -> None:
    record = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(record | fields))


def test_what_is_other_is_refused(run: dict, bundle_path: Path) -> None:
    saved_bundle("other", tiny_config(), d_sae=32)
    with pytest.raises(InputError, match=r"the bundle other holds other weights than the run's \(saes/blocks.0"):
        repeat_run("run", "again", bundle="other")
    with pytest.raises(InputError, match=r"the output run is the run that is to be repeated"):
        repeat_run("run", "run", overwrite=True)
    Path("run/prompts.parquet").write_bytes(Path("run/edges/part-00000.parquet").read_bytes())
    with pytest.raises(InputError, match=r"run/prompts.parquet is not the one that run.json names"):
        repeat_run("run", "again")
    Path("run/prompts.parquet").unlink()
    change(inputs={name: value for name, value in run["inputs"].items() if name != "corpus"})  # as of prompts
    with pytest.raises(InputError, match=r"the run's prompts are gone: there is no prompts.parquet in run"):
        repeat_run("run", "again")
    change(bundle={"path": "nowhere", "sha256": run["bundle"]["sha256"]})
    with pytest.raises(InputError, match=r"the run's bundle nowhere is not there; name it with --bundle DIR"):
        repeat_run("run", "again")
    change(finished=False)
    with pytest.raises(InputError, match=r"the run run is not finished"):
        repeat_run("run", "again")
    assert not Path("again").exists()


def test_other_bytes_and_other_versions_are_said(
    run: dict, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", ".cache")
    parts = json.loads(json.dumps(run["parts"]))
    parts[1]["edges"]["sha256"] = "0" * 64
    change(parts=parts, versions=run["versions"] | {"jax": "0.6.0"})
    assert main(["attribute", "--repeat", "run/run.json", "--out", "again", "--show", "0"]) == 1
    output = capsys.readouterr()
    assert "different: 1 of 8 files are not those of run/run.json: edges/part-00001.parquet\n" in output.out
    assert output.err.startswith(
        f"jaxcircuits: warning: the run was made with jax '0.6.0', here '{run['versions']['jax']}'"
    )
    assert main(["attribute", "--repeat", "run/run.json", "--top-k", "3"]) == 2
    assert "--repeat takes everything from the run; leave --top-k out" in capsys.readouterr().err
    assert main(["attribute", "--repeat", "nowhere/run.json", "--out", "again"]) == 2
    assert "no run in nowhere" in capsys.readouterr().err
