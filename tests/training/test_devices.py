"""Training on several devices: each has a part of the batch, and the weights are those of one device."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle, save_bundle
from tests.helpers import assert_close
from tests.training.conftest import SHORT
from tests.training.test_commands import options

SCRIPT = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from jaxcircuits import load_bundle, read_corpus
from jaxcircuits.training.devices import all_devices
from jaxcircuits.training.sae import train_saes
from jaxcircuits.training.settings import SAETraining
from jaxcircuits.training.sweep import sweep_runs
assert jax.device_count() == int(sys.argv[1])
spread = all_devices(64).spread(np.zeros((64, 3), np.float32))
assert len(getattr(spread, "sharding").device_set if jax.device_count() > 1 else [0]) == int(sys.argv[1])
bundle, texts = load_bundle("model", dtype=jnp.float64, processed=False), list(read_corpus("train.txt"))
runs = sweep_runs(SAETraining(**json.loads(sys.argv[2])), {"activation": json.loads(sys.argv[3]), "l0": [4.0, 7.0]})
out = Path(sys.argv[1])
out.mkdir()
saes = train_saes(bundle, "blocks.0.mlp.hook_post", texts, runs, out, {n: out / n for n in runs}, quiet=True)
weights = {f"{n} {k}": v for n, s in saes.items() for k, v in s.weights._asdict().items() if v is not None}
np.savez(out / "weights.npz", **weights)
"""


def run(arguments: list[str], devices: int) -> subprocess.CompletedProcess:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def model(bundle, words) -> None:
    Path("train.txt").write_text("\n".join(words))
    save_bundle("model", bundle.cfg, bundle.params, {}, bundle.tokenizer, source={"source": "random"})


def test_four_devices_train_what_one_does(model):
    found = []
    for devices in (1, 4):
        done = run(["-c", SCRIPT, str(devices), json.dumps(asdict(SHORT)), json.dumps(["relu", "batchtopk"])], devices)
        assert done.returncode == 0, done.stderr
        found.append(np.load(f"{devices}/weights.npz"))
    one, four = found
    assert set(one) == set(four) and len(one) == 2 * (4 + 5)
    for name in one:
        assert_close(four[name], one[name], "methods", name)


def test_batches_that_devices_cannot_share_are_refused(model):
    command = ["-m", "jaxcircuits", "train", "sae", "--bundle", "model", "--corpus", "train.txt", "--out", "out"]
    done = run([*command, *options(SHORT)], 3)
    assert done.returncode == 2
    assert "batch_tokens must be a multiple of the 3 devices" in done.stderr
    assert not Path("out").exists()
    assert load_bundle("model").saes == {}
