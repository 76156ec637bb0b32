"""Runs trained at once: each is what it would be alone, and the figure and the tables tell which are worth having."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle, save_bundle
from jaxcircuits.cli import main
from jaxcircuits.errors import InputError
from jaxcircuits.training.pareto import plot_pareto
from jaxcircuits.training.sae import STACKED, _grouped, train_sae, train_saes
from jaxcircuits.training.settings import SAETraining
from jaxcircuits.training.sweep import SHARED, parse_sweep, sweep_runs
from tests.helpers import assert_close
from tests.training.conftest import SAE, SHORT, changed
from tests.training.test_commands import options

HOOK = "blocks.0.mlp.hook_post"


@pytest.mark.parametrize(
    "sweep",
    [
        {"l0": [3.0, 9.0], "seed": [8, 21], "lr": [0.01, 0.004], "kl_weight": [9.0]},
        {"penalty": ["power", "l1+0.1*hoyer_square"], "power": [0.3], "sparsity": [0.1], "spliced_lr": [0.5, 0.2]},
        {"activation": ["topk", "batchtopk"], "k": [1, 2], "auxiliary": [0.01, 0.3]},
        {"activation": ["jumprelu"], "bandwidth": [0.05, 0.2], "read_weight": [0.1], "l0": [4.0, 8.0]},
    ],
    ids=lambda sweep: ",".join(sweep),
)
def test_each_run_of_a_sweep_is_the_run_alone(sweep, exact_bundle, words, tmp_path):
    runs = sweep_runs(SHORT, sweep)
    logs = {name: tmp_path / f"{i}.jsonl" for i, name in enumerate(runs)}
    together = train_saes(exact_bundle, HOOK, words, runs, tmp_path, logs, quiet=True)
    for setting in (name for name, values in sweep.items() if len(values) > 1):  # it does something
        found: dict[SAETraining, set[bytes]] = {}
        for name, run in runs.items():
            alike = found.setdefault(changed(run, **{setting: sweep[setting][0]}), set())
            alike.add(np.asarray(together[name].weights.W_enc).tobytes())
        assert max(map(len, found.values())) > 1, setting
    *_, name = runs
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = train_sae(exact_bundle, HOOK, words, runs[name], alone, quiet=True)
    assert together[name].cfg == expected.cfg
    for field, value in expected.weights._asdict().items():
        if value is not None:
            assert_close(getattr(together[name].weights, field), value, "methods", f"{name}: {field}")
    log = json.loads((alone / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads(logs[name].read_text().splitlines()[-1]) == pytest.approx(log, rel=1e-6)


def test_numbers_are_stacked_and_all_else_is_a_group_of_its_own():
    runs = sweep_runs(SAE, {"activation": ["relu", "topk"], "l0": [3.0, 5.0], "seed": [0, 1], "expansion": [2, 3]})
    assert [len(group.runs) for group in _grouped(runs)] == [4, 4, 4, 4]
    assert set(STACKED).isdisjoint(SHARED)
    assert {run.order for run in runs.values()} == {SAE.seed}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("l0", "expected SETTING=VALUE"),
        ("colour=red", "expected SETTING=VALUE"),
        ("l0=1,two", "l0 expected numbers"),
        ("l0=1,1.0", "expected different values"),
        ("tokens=5,6", "cannot vary tokens"),
        ("text-seed=5,6", "cannot vary text_seed"),
    ],
)
def test_sweeps_that_mean_nothing_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        parse_sweep([given])


def test_an_impossible_combination_is_named():
    with pytest.raises(InputError, match="the sweep's run penalty=l0,activation=relu: the penalty l0"):
        sweep_runs(SAETraining(), parse_sweep(["penalty=l0", "activation=jumprelu,relu"]))


def test_command_writes_a_bundle_a_table_and_a_figure(bundle, words, capsys):
    Path("train.txt").write_text("\n".join(words))
    Path("valid.txt").write_text("\n".join(words[:9]))
    save_bundle("model", bundle.cfg, bundle.params, {}, bundle.tokenizer, source={"source": "random"})
    command = ["train", "sae", "--bundle", "model", "--corpus", "train.txt", "--out", "out", *options(SHORT)]
    assert main([*command, "--valid", "valid.txt"]) == 2
    assert "give --sweep too" in capsys.readouterr().err
    sweep = ["--sweep", "penalty=l1,l1+0.5*sqrt", "--sweep", "l0=3", "--valid", "valid.txt"]
    assert main([*command, *sweep]) == 0
    shown = capsys.readouterr().out
    names = ["penalty=l1,l0=3", "penalty=l1+0.5xsqrt,l0=3"]
    hooks = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
    assert all(name in shown for name in (*names, *hooks))
    made = load_bundle("out/bundle")
    assert set(made.saes) == {f"{hook},{name}" for hook in hooks for name in names}
    training = made.manifest["training"]["sae"]
    assert training["lr"] == SHORT.lr
    assert training["l0"] == 3
    assert training["runs"][names[1]] == {"penalty": "l1+0.5*sqrt"}
    pareto = json.loads(Path("out/pareto.json").read_text())
    assert pareto["text"] == "valid.txt"
    assert [(p["hook_name"], p["run"]) for p in pareto["points"]] == [(h, n) for h in hooks for n in names]
    for hook in hooks:
        of_hook = [p for p in pareto["points"] if p["hook_name"] == hook]
        for p in of_hook:
            better = [q for q in of_hook if q["l0"] <= p["l0"] and q["recovery_zero"] >= p["recovery_zero"] and q != p]
            assert p["front"] == (not better)
    for name in names:
        for hook in hooks:
            lines = (Path("out/sweep") / name / hook / "metrics.jsonl").read_text().splitlines()
            assert json.loads(lines[-1])["step"] == SHORT.steps
    assert Path("out/pareto.png").stat().st_size > 0
    assert main([*command, "--sweep", "l0=5,8"]) == 2
    assert "holds a training run with l0=3.0, not None;" in capsys.readouterr().err
    assert main(command) == 2
    assert "holds a training run of kind sweep, expected one of kind sae" in capsys.readouterr().err


def test_figure_has_a_line_a_kind_and_a_row_a_hook_point(monkeypatch):
    import matplotlib.pyplot as plt

    points = [
        {
            "hook_name": hook,
            "activation": activation,
            "penalty": penalty,
            "l0": l0,
            "recovery_zero": l0 / 100,
            "variance_explained": l0 / 200,
            "front": l0 == 10,
        }
        for hook in ("a", "b", "c")
        for activation, penalty in (("relu", "l1"), ("relu", "power"), ("topk", ""))
        for l0 in (40, 10)
    ]
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    plot_pareto(points, Path("pareto.png"))
    (figure,) = kept
    assert len(figure.axes) == 6
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["relu, l1", "relu, power", "topk"]
    for ax in figure.axes:
        assert [list(line.get_xdata()) for line in ax.lines] == [[10, 40]] * 3
        assert len({line.get_color() for line in ax.lines}) == 3


def test_states_of_a_sweep_are_not_shared(bundle, words, tmp_path):
    """Two groups begin with the same weights; a step gives a state's memory away."""
    runs = sweep_runs(changed(SHORT, spliced=0.0), {"resamplings": [0, 1]})
    saes = train_saes(bundle, HOOK, words, runs, tmp_path, {n: tmp_path / f"{n}.jsonl" for n in runs}, quiet=True)
    assert all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(saes))
