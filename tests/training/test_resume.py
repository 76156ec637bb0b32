"""An interrupted training goes on as if nothing had happened: not one bit of weights or metrics differs."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcircuits.bundle import save_bundle
from jaxcircuits.training import loop
from jaxcircuits.training import sae as sae_module
from jaxcircuits.training.sae import train_saes
from jaxcircuits.training.settings import ACTIVATIONS, SAETraining
from jaxcircuits.training.sweep import sweep_runs
from tests.training.conftest import SAE, changed
from tests.training.test_commands import options

HOOK = "blocks.0.mlp.hook_post"
RUNS = {activation: {"": changed(SAE, activation=activation)} for activation in ACTIVATIONS}
RUNS["a sweep"] = sweep_runs(SAE, {"penalty": ["l1", "power"], "l0": [4.0, 8.0]})


def trained(bundle, words, runs: dict[str, SAETraining], out: Path, **keywords):
    logs = {name: out / f"{i}.jsonl" for i, name in enumerate(runs)}
    out.mkdir(exist_ok=True)
    saes = train_saes(bundle, HOOK, words, runs, out, logs, quiet=True, checkpoint_every=7, **keywords)
    return saes, [log.read_text() for log in logs.values()]


@pytest.mark.parametrize("which", RUNS)
@pytest.mark.parametrize("stop", [5, 31], ids=["before a checkpoint", "in the second phase"])
def test_resumed_run_equals_an_uninterrupted_one(which, stop, bundle, words, tmp_path, monkeypatch):
    def interrupted(state, step, batch_at, n_steps, out, **keywords):
        def until(number):
            if number == stop:
                raise KeyboardInterrupt
            return batch_at(number)

        return loop.train(state, step, until, n_steps, out, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(sae_module, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(bundle, words, RUNS[which], tmp_path / "parts")
    (tmp_path / "parts" / ".checkpoint.msgpack.1.partial").write_bytes(b"half")  # as a kill while writing leaves it
    resumed, its_lines = trained(bundle, words, RUNS[which], tmp_path / "parts")
    whole, lines = trained(bundle, words, RUNS[which], tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert its_lines == lines
    assert [p.name for p in (tmp_path / "parts").glob(".*")] == []


@pytest.mark.slow
def test_killed_command_goes_on_where_it_was(bundle, words):
    """SIGKILL at several moments of one sweep, which then has the bundle of one that was left alone."""
    Path("train.txt").write_text("\n".join(words))
    save_bundle("model", bundle.cfg, bundle.params, {}, bundle.tokenizer, source={"source": "random"})
    settings = changed(SAE, tokens=64 * 400, resamplings=3)
    command = [sys.executable, "-m", "jaxcircuits", "train", "sae", "--bundle", "model", "--corpus", "train.txt"]
    command += [*options(settings), "--sweep", "activation=relu,batchtopk", "--checkpoint-every", "10", "--quiet"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(Path("compiled").resolve())}
    run = partial(subprocess.Popen, env=environment)
    assert run([*command, "--out", "whole"]).wait() == 0
    checkpoints = Path("killed")
    for delay in (0.0, 0.05, 0.3, 0.7, 1.1):
        process = run([*command, "--out", "killed"])
        before = _newest(checkpoints)
        while process.poll() is None and _newest(checkpoints) == before:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run([*command, "--out", "killed"]).wait() == 0
    for file in sorted(p for p in Path("whole").rglob("*") if p.suffix in (".safetensors", ".jsonl", ".msgpack")):
        assert file.read_bytes() == (Path("killed") / file.relative_to("whole")).read_bytes(), file


def _newest(out: Path) -> float:
    return max((p.stat().st_mtime for p in out.glob("*/checkpoint.msgpack")), default=0.0)
