"""Real kills: SIGKILL at random moments, again and again, until the run is through."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxcircuits import load_run

KILLS = 20


@pytest.mark.slow
def test_twenty_kills_and_nothing_is_lost_or_doubled(bundle_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(1, 31, 14)) for _ in range(400)]
    Path("corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    code = "import sys\nfrom jaxcircuits.attribution import plan\nfrom jaxcircuits.cli import main\n"
    code += "plan._prompts_a_part = lambda *_: 4\nsys.exit(main())"
    command = [sys.executable, "-c", code, "attribute", "--bundle", str(bundle_path), "--corpus", "corpus.jsonl"]
    command += ["--positions", "all", "--activations", "--no-statistics", "--memory", "1GB", "--quiet", "--out"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": os.path.abspath("cache")}
    subprocess.run([*command, "whole"], env=environment, check=True)
    moments, kills, finished = random.Random(0), 0, []
    while kills < KILLS:
        process = subprocess.Popen([*command, "killed"], env=environment, stderr=subprocess.PIPE)
        before = finished[-1] if finished else 0
        record = Path("killed/run.json")
        # Let it get on, or there would be nothing to kill: then at any moment.
        while process.poll() is None and _parts(record) <= before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        finished.append(_parts(record))
    assert finished == sorted(finished)  # what was finished stays
    subprocess.run([*command, "killed"], env=environment, check=True)
    expected, found = (
        {p.relative_to(d).as_posix(): p.read_bytes() for p in Path(d).rglob("*.*") if p.is_file()}
        for d in ("whole", "killed")
    )
    assert load_run("killed").finished
    assert {part["part"] for part in load_run("killed").record["parts"]} == set(range(100))
    assert found == expected


def _parts(record: Path) -> int:
    try:
        return len(json.loads(record.read_text())["parts"])
    except FileNotFoundError:
        return 0
