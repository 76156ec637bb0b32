"""A run that ends early goes on where it ended, and nobody sees it in what comes out."""

import json
import os
import resource
import shutil
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

from jaxcircuits import InputError, Settings, load_run
from jaxcircuits.bulk import attribute_to_run, read_prompts, runner, sums
from jaxcircuits.bulk.store import Store
from jaxcircuits.cli import main

TEXTS = ["w3 w4 w5", "w9 w8", "w1 w2 w3 w4 w5 w6", "w11", "w12 w13 w14"]


@pytest.fixture(autouse=True)
def _parts(two_prompts_a_part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "PARTS", 2)  # of three parts, two are summed on the way
    Path("corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))


def attribute(bundle, out: str = "run", settings: Settings | None = None, said: list[str] | None = None, **options):
    options = {"activations": True, "statistics": True, "memory": 2**30} | options
    prompts = read_prompts(bundle, corpus=options.pop("corpus", "corpus.jsonl"), **options.pop("reading", {}))
    settings = settings or Settings(positions="all", derivative="integrated", baseline="mean", points=2)
    say = (lambda _: None) if said is None else said.append
    return attribute_to_run(bundle, settings, prompts, out, quiet=True, say=say, **options)[0]


def everything(path: str) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


def test_killed_after_any_write_it_ends_in_the_same_bytes(bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state that a kill can leave is one between two writes, or amid one; all of them are gone on from."""
    states: list[str] = []
    one = Lock()  # files of a part are written at once

    def replace(partial, path) -> None:
        with one:
            replace_and_copy(partial, path)

    def replace_and_copy(partial, path) -> None:
        if "run" in Path(path).parts and len(states) % 4 == 0:  # amid this write
            states.append(f"state-{len(states)}")
            shutil.copytree("run", states[-1])
            half = Path(states[-1]) / Path(partial).relative_to(Path("run").resolve())
            half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
        os.rename(partial, path)
        if "run" in Path(path).parts:
            states.append(f"state-{len(states)}")
            shutil.copytree("run", states[-1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        attribute(bundle)
    expected = everything("run")
    assert len(states) > 20
    assert len(json.loads(expected["run.json"])["parts"]) == 3
    for state in states[1:]:  # in the first nothing counts, not even what is asked
        attribute(bundle, state)
        assert everything(state) == expected, state


def test_parts_that_are_there_are_not_computed_again(bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute(bundle)
    expected = everything("run")
    record = json.loads(expected["run.json"])
    record["finished"], lost = False, record["parts"].pop()
    Path("run/run.json").write_text(json.dumps(record))
    first = Path("run") / record["parts"][0]["edges"]["file"]
    before, said = first.stat().st_mtime_ns, []
    run = attribute(bundle, said=said)
    assert run.finished and first.stat().st_mtime_ns == before
    assert said == ["going on: 2 of 3 parts were finished before."]
    assert everything("run") == expected
    assert lost in run.record["parts"]
    assert attribute(bundle, said=said).finished
    assert said[1] == "the run run was finished before; nothing is left to do."


def test_a_damaged_part_is_computed_again(bundle) -> None:
    attribute(bundle)
    expected = everything("run")
    Path("run/edges/part-00001.parquet").write_bytes(expected["edges/part-00001.parquet"][:-7])
    newest = bytearray(expected["targets/part-00002.parquet"])
    newest[40] ^= 1  # of the same size
    Path("run/targets/part-00002.parquet").write_bytes(newest)
    Path("run/prompts.parquet").unlink()
    said = []
    attribute(bundle, said=said)
    assert [s.split(" is not")[0] for s in said[:2]] == ["part 1", "part 2"]
    assert everything("run") == expected


def test_parts_whose_merged_sums_are_damaged_are_computed_again(bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(of: sums.Sums) -> None:
        raise InputError("no room.")

    with monkeypatch.context() as patch:
        patch.setattr(sums.Sums, "merge", stop)
        with pytest.raises(InputError, match="no room. 3 of 3 parts are finished"):
            attribute(bundle)
    record = json.loads(Path("run/run.json").read_text())
    assert [span["parts"] for span in record["sums"]] == [[0, 2], [2, 3]]
    shutil.copytree("run", "copy")
    Path("copy/edges/part-00001.parquet").unlink()  # its sums are there
    Path("run", record["sums"][0]["pairs"]["file"]).write_bytes(b"half")
    said: list[str] = []
    attribute(bundle, said=said)
    assert [s.split(" is not")[0] for s in said[:2]] == ["part 0", "part 1"]
    attribute(bundle, "copy")
    attribute(bundle, "whole")
    assert everything("run") == everything("copy") == everything("whole")


def test_a_full_disk_keeps_what_is_finished(bundle) -> None:
    attribute(bundle, "whole", statistics=False)
    sizes = {p.name: p.stat().st_size for p in sorted(Path("whole/edges").iterdir())}
    largest = max(sizes, key=lambda name: sizes[name])
    others = [size for name, size in everything_sizes("whole").items() if name != f"edges/{largest}"]
    limit = (sizes[largest] + max(others)) // 2
    assert max(others) < limit < sizes[largest]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            InputError, match=r"cannot write edges/part-.* to run \(File too large\).*of 3 parts are fin"
        ):
            attribute(bundle, statistics=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    unfinished = load_run("run")
    assert not unfinished.finished
    assert unfinished.edges.count_rows() == unfinished.rows("edges") > 0
    attribute(bundle, statistics=False)
    assert everything("run") == everything("whole")


def test_a_full_disk_keeps_what_is_summed(bundle, monkeypatch) -> None:
    """The sums of several parts are the largest files on the way."""
    with monkeypatch.context() as kept:
        kept.setattr(runner, "remove_sums", lambda place: None)
        attribute(bundle, "sums")
    sums_of_two = Path("sums/statistics/pairs/parts-00000-00002.rows").stat().st_size
    attribute(bundle, "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sums_of_two - 1, hard))
    try:
        with pytest.raises(InputError, match=r"cannot (write|merge).*statistics/pairs.*of 3 parts are fin"):
            attribute(bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(InputError, match="is not finished"):
        _ = load_run("run").statistics
    attribute(bundle)
    assert everything("run") == everything("whole")


def everything_sizes(path: str) -> dict[str, int]:
    return {name: len(content) for name, content in everything(path).items()}


def test_processes_leave_notes_for_the_first(bundle) -> None:
    run = attribute(bundle)
    store = Store(run.place, json.loads(Path("run/run.json").read_text()))
    noted = store.record["parts"].pop(1)
    store.note(noted)
    store.take_up_notes()
    assert store.done == {0, 1, 2}
    assert json.loads(Path("run/run.json").read_text())["parts"][1] == noted
    store.note_stop(3, "the disk is full.")
    with pytest.raises(InputError, match="process 3 stopped: the disk is full"):
        store.take_up_notes()
    store.remove_notes("stopped")
    store.take_up_notes()
    store.remove_notes()
    assert not Path("run/.notes").exists()


def test_where_nothing_can_be_written_it_says_so(bundle) -> None:
    with pytest.raises(InputError, match=r"cannot write run.json to /proc/jaxcircuits"):
        attribute(bundle, "/proc/jaxcircuits")


def test_another_job_at_the_same_place_is_refused(bundle) -> None:
    attribute(bundle)
    before = everything("run")
    Path("other.jsonl").write_text('{"text": "w1 w2"}')
    for options, words in (
        ({"settings": Settings()}, "settings.positions 'all' where this one has 'same'"),
        ({"corpus": "other.jsonl"}, "another corpus"),
        ({"reading": {"truncate": True}}, "inputs.truncate False where this one has True"),
        ({"activations": False}, "kept"),
        ({"targets": [(1, 2)], "activations": False, "statistics": False}, "targets None"),
    ):
        with pytest.raises(InputError, match=f"holds a run with {words}.*--overwrite"):
            attribute(bundle, **options)
    assert everything("run") == before
    Path("other.jsonl").write_text(json.dumps({"text": "w1 " * 40}))
    with pytest.raises(InputError, match="context holds"):  # what is there stays until the new one has something
        attribute(bundle, corpus="other.jsonl", overwrite=True)
    assert everything("run") == before
    Path("other.jsonl").write_text('{"text": "w1 w2"}')
    assert attribute(bundle, corpus="other.jsonl", overwrite=True).record["prompts"] == 1
    assert [p.name for p in Path().iterdir() if "run" in p.name] == ["run"]


def test_a_corpus_that_vanished_loses_nothing(bundle) -> None:
    attribute(bundle)
    before = everything("run")
    Path("corpus.jsonl").unlink()
    with pytest.raises(InputError, match=r"corpus: there is no file corpus.jsonl"):
        attribute(bundle)
    assert everything("run") == before


def test_what_is_skipped_is_recorded(bundle_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", ".cache")
    lines = [b'{"text": "w1 w2"}', b'{"text": "w\xff"}', b"{oops", json.dumps({"text": "w1 " * 40}).encode()]
    Path("bad.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "w3"}']))
    command = ["attribute", "--bundle", str(bundle_path), "--corpus", "bad.jsonl", "--no-statistics", "--quiet"]
    assert main([*command, "--out", "r"]) == 2
    assert "line 2 of bad.jsonl is not UTF-8 (byte 0xff at offset 29)" in capsys.readouterr().err
    assert not Path("r").exists()
    assert main([*command, "--skip-bad", "--out", "r"]) == 0
    inputs, warnings = load_run("r").record["inputs"], capsys.readouterr().err
    assert inputs["n_skipped"] == 3
    for sentence, words in zip(
        inputs["skipped"], ("not UTF-8", "line 3 of bad.jsonl is not JSON", "41 tokens"), strict=True
    ):
        assert words in sentence
        assert f"left out: {sentence}" in warnings
    assert [len(tokens) for tokens in load_run("r").tokens] == [3, 2]


def test_a_url_holds_the_same_run(bundle) -> None:
    import fsspec

    local = attribute(bundle)
    with fsspec.open("memory://corpora/corpus.jsonl", "wb") as file:
        file.write(Path("corpus.jsonl").read_bytes())
    for _ in range(2):  # made, then found finished
        there = attribute(bundle, "memory://runs/one", corpus="memory://corpora/corpus.jsonl")
        assert there.finished
        for kind in ("edges", "targets", "activations", "prompts", "statistics"):
            assert getattr(there, kind).to_table() == getattr(local, kind).to_table()
    with fsspec.open("memory://corpora/corpus.jsonl", "ab") as file:
        file.write(b'\n{"text": "w5"}')
    with pytest.raises(InputError, match="another corpus"):
        attribute(bundle, "memory://runs/one", corpus="memory://corpora/corpus.jsonl")
    np.testing.assert_equal(load_run("memory://runs/one").strongest(3), local.strongest(3))
