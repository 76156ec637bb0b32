"""One device, eight devices, two processes: the same edges. Each is a command in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcircuits import load_run
from tests.helpers import TOLERANCES

KEY = ["prompt", "target_pos", "target_feature", "source_pos", "source_feature"]

NEAR = 1e-5
"""How near to its threshold, relative to the largest, an activation may be for an edge to be there in one run only."""


def start(bundle: Path, out: str, devices: int, *options: str) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": os.path.abspath("cache")}
    command = [sys.executable, "-m", "jaxcircuits", "attribute", "--bundle", str(bundle), "--corpus", "corpus.jsonl"]
    command += ["--positions", "all", "--activations", "--no-statistics", "--memory", "1MB", "--quiet", "--out", out]
    return subprocess.Popen([*command, *options], env=environment, stderr=subprocess.PIPE, text=True)


def done(*processes: subprocess.Popen) -> None:
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error


def corpus(prompts: int) -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in random.integers(1, 31, random.integers(3, 15))) for _ in range(prompts)]
    Path("corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))


def assert_same(name: str, expected: pd.DataFrame) -> None:
    found = load_run(name).to_pandas()
    both = found.merge(expected, on=KEY, how="outer", indicator=True, suffixes=("", "_expected"))
    alone = both[both._merge != "both"]
    weakest = np.fmin(
        alone.source_act.fillna(alone.source_act_expected), alone.target_act.fillna(alone.target_act_expected)
    )
    assert (weakest <= NEAR * expected.source_act.max()).all(), f"{name}: edges in one run only: {alone[KEY]}"
    both = both[both._merge == "both"]
    for column in ("gradient", "attribution", "source_act", "target_act"):
        largest = both[f"{column}_expected"].abs()
        over = largest.groupby([both[name] for name in KEY[:3]]).transform("max")  # one target's edges
        largest = over if column in ("gradient", "attribution") else largest.max()
        off = (both[column] - both[f"{column}_expected"]).abs()
        assert (off <= TOLERANCES["methods"]["float32"] * largest).all(), f"{name}: {column}"


def test_eight_devices_and_two_processes_find_what_one_device_finds(bundle_path: Path) -> None:
    corpus(16)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = ("--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id")
    done(
        start(bundle_path, "one", 1),
        start(bundle_path, "eight", 8, "--mesh", "4x2"),
        *(start(bundle_path, "two", 2, *pair, str(i)) for i in range(2)),
    )
    expected = load_run("one").to_pandas()
    assert len(expected) > 1000
    for name in ("eight", "two"):
        assert_same(name, expected)
        run = load_run(name)
        assert run.finished
        assert run.activations.count_rows() == load_run("one").activations.count_rows()
    assert load_run("eight").record["device"]["mesh"] == {"data": 4, "model": 2}
    assert len(load_run("two").record["parts"]) > 2
    assert not Path("two/.notes").exists()


def test_what_machines_lack_is_said(bundle_path: Path, capsys) -> None:
    from jaxcircuits.cli import main

    command = ["attribute", "--bundle", str(bundle_path), "--prompt", "w1", "--out", "r"]
    for options, words in (
        (["--mesh", "8x2"], "a mesh of 8x2 takes 16 devices, but this process has 1"),
        (["--num-processes", "2"], "needs --coordinator HOST:PORT, --num-processes and --process-id"),
        (["--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"], "--process-id must lie in 0..1, got 2"),
    ):
        assert main([*command, *options]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--mesh", "4"])
    assert "expected two numbers of devices such as 4x2, got '4'" in capsys.readouterr().err
