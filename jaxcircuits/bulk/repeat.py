"""A run once more from what its `run.json` says, and whether the same bytes came out.

Settings, targets, plan and what is kept come from the record; token ids from `prompts.parquet` beside it or, where that
is gone, from the corpus that it names; weights from the bundle that it names. All are compared with their checksums. A
part depends on nothing else but versions, device and host, which are recorded too.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcircuits.attribution import Settings
from jaxcircuits.attribution.edges import Columns
from jaxcircuits.bulk.prompts import FILE, GROUP, Prompt, Prompts
from jaxcircuits.bulk.record import versions_here
from jaxcircuits.bulk.run import Run, load_run
from jaxcircuits.bulk.runner import attribute_to_run
from jaxcircuits.bulk.store import RECORD, files_of
from jaxcircuits.bundle import Bundle, load_bundle, shipped_bundle
from jaxcircuits.corpus import Skip
from jaxcircuits.errors import InputError
from jaxcircuits.files import BUNDLE, read_json
from jaxcircuits.mesh import DATA, MODEL, make_mesh
from jaxcircuits.places import Place, Where, digest_of


@dataclass(frozen=True)
class _RunPrompts(Prompts):
    """The prompts of a run as it recorded them, with what it left out."""

    place: Place | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def each(self, skip: Skip, check: Callable[[np.ndarray], Any] | None = None) -> Iterator[Prompt]:
        """Yields each prompt; tells `skip` of what the run left out."""
        import pyarrow.parquet as pq

        assert self.place is not None
        for number in range(self.inputs["n_skipped"]):
            skip(next(iter(self.inputs["skipped"][number : number + 1]), ""))
        with self.place.open(FILE) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=GROUP, columns=["text", "tokens"]):
                for row in batch.to_pylist():
                    yield Prompt(np.array(row["tokens"], np.int32), row["text"])

    def description(self) -> dict[str, Any]:
        """That of the run."""
        return dict(self.inputs)


class Repeated(NamedTuple):
    """A run that was repeated.

    Attributes:
        bundle: What it was repeated with.
        run: The new one.
        strongest: Its edges of largest absolute attribution, strongest first.
        files: How many files of tables the recorded run has.
        different: Which of them the new one has otherwise or not at all; none where all are equal byte for byte.
    """

    bundle: Bundle
    run: Run
    strongest: Columns
    files: int
    different: list[str]


def repeat_run(
    where: Where,
    out: Where,
    *,
    bundle: str | os.PathLike | None = None,
    mesh: tuple[int, int] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    keep: int = 20,
    say: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Repeated:
    """Repeats a run, and compares the bytes of every table.

    Args:
        where: The run's directory or its `run.json`.
        out: The directory to make.
        bundle: Where its bundle lies now; by default where it lay then, or the shipped one.
        mesh: Devices along prompts and features; by default as many as then, where there are as many.
        overwrite: Whether to replace what is at `out`.
        quiet: No progress bar.
        keep: How many of the strongest edges to return.
        say: Told what a user should know.
        warn: Told what is not as it was and may change last digits.

    Raises:
        InputError: The run is not finished, its weights or prompts are others now or gone, or `out` cannot be used.

    >>> from jaxcircuits.bulk import repeat_run
    >>> repeat_run("no/such/run.json", "again")
    Traceback (most recent call last):
    jaxcircuits.errors.InputError: there is no run in no/such/; expected a directory with run.json, a plan in it.
    """
    name = os.fspath(where)
    old = load_run(name.removesuffix(RECORD) or ".")
    record = old.record
    if not old.finished:
        raise InputError(f"the run {old.place.name} is not finished; run its command again, and then repeat it.")
    if Place(out).root == old.place.root:
        raise InputError(f"the output {out} is the run that is to be repeated; name another.")
    read = _bundle(record, bundle)
    for sentence in _changes(record):
        warn(sentence)
    done, strongest = attribute_to_run(
        read,
        _settings(record),
        _prompts(old, read),
        out,
        targets=None if record["targets"] is None else [(pos, feature) for pos, feature in record["targets"]],
        memory=record["plan"]["memory"],
        overwrite=overwrite,
        quiet=quiet,
        keep=keep,
        edges="edges" in record["kept"],
        activations="activations" in record["kept"],
        statistics="statistics" in record["kept"],
        mesh=_mesh(record, mesh, warn),
        plan=record["plan"],
        say=say,
    )
    then, now = (_sums(r) for r in (record, done.record))
    different = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    return Repeated(read, done, strongest, len(then), different)


def _settings(record: Mapping[str, Any]) -> Settings:
    known = {f.name for f in fields(Settings)}
    return Settings(**{name: value for name, value in record["settings"].items() if name in known})


def _bundle(record: Mapping[str, Any], given: str | os.PathLike | None) -> Bundle:
    """The run's bundle.

    Raises:
        InputError: It is gone, or holds other weights.
    """
    wanted: Mapping[str, str] = record["bundle"]["sha256"]
    then = record["bundle"]["path"]
    if given is None and then is None:
        raise InputError("the run's weights came from no bundle on disk; save them and name the bundle with --bundle.")
    place = Path(then if given is None else given)
    if given is None and not place.is_dir() and _sums_of_bundle(shipped_bundle()) == wanted:
        place = shipped_bundle()
    if not place.is_dir():
        raise InputError(f"the run's bundle {place} is not there; name it with --bundle DIR.")
    if "arrays" not in wanted:
        found = _sums_of_bundle(place)
        others = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if others:
            raise InputError(
                f"the bundle {place} holds other weights than the run's ({', '.join(others[:3])}); "
                "name the right one with --bundle DIR."
            )
    dtype = record["settings"]["dtype"]
    if dtype == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError("the run was computed in float64; set JAX_ENABLE_X64=1 and repeat it so.")
    return load_bundle(place, dtype=dtype)


def _sums_of_bundle(place: Path) -> dict[str, str]:
    manifest = read_json(place / BUNDLE, "bundle")
    return manifest.get("sha256", {}) if isinstance(manifest, dict) else {}


def _prompts(old: Run, bundle: Bundle) -> Prompts:
    """The run's prompts.

    Raises:
        InputError: They are gone, or others.
    """
    inputs, place = old.record["inputs"], old.place
    if place.exists(FILE):
        if place.sha256(FILE) != old.record["files"][FILE]["sha256"]:
            raise InputError(f"{place.name}/{FILE} is not the one that {RECORD} names; restore it.")
        return _RunPrompts(bundle, place=place, inputs=inputs)
    corpus = inputs.get("corpus")
    if corpus is None:
        raise InputError(f"the run's prompts are gone: there is no {FILE} in {place.name}; restore it.")
    if digest_of(corpus, "corpus") != inputs["corpus_sha256"]:
        raise InputError(
            f"the corpus {corpus} is not the one that the run read, and there is no {FILE} in {place.name}; "
            "restore one of them."
        )
    return Prompts(bundle, corpus=corpus, truncate=inputs["truncate"], skip_bad=inputs["skip_bad"])


def _changes(record: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was and may change last digits."""
    for name, here in versions_here().items():
        then = record.get(name, here)
        changed = [f"{key} {then.get(key)!r}, here {value!r}" for key, value in here.items() if then.get(key) != value]
        if changed:
            yield f"the run was made with {'; '.join(changed)}: last digits may differ."


def _mesh(record: Mapping[str, Any], given: tuple[int, int] | None, warn: Callable[[str], None]) -> Any:
    then = record["device"]["mesh"]
    try:
        return make_mesh(*(given or (then[DATA], then[MODEL])))
    except InputError:
        if given is not None:
            raise
        warn(f"the run was made on {then[DATA]}x{then[MODEL]} devices, which are not here: last digits may differ.")
        return make_mesh()


def _sums(record: Mapping[str, Any]) -> dict[str, str]:
    """The checksum of every file of tables, by name."""
    parts = [entry for part in record["parts"] for entry in files_of(part)]
    return {entry["file"]: entry["sha256"] for entry in parts} | {
        name: entry["sha256"] for name, entry in record["files"].items()
    }
