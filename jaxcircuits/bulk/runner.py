"""Plan, compute, store: prompts go through the engine a part at a time, each part to disk while the next is computed.

1. Begin: a new record, or the one of the same job that did not end (`record`).
2. Look at all prompts once and write them; decide the shapes by their lengths and by some of them (`prompts`).
3. Compute the parts that are not there yet, each process its own (`processes`); what is stored counts (`store`).
4. Merge what the parts say of each pair of features.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcircuits.ahead import Ahead
from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.edges import Columns
from jaxcircuits.attribution.listing import Listed
from jaxcircuits.attribution.prompts import Prompts as Numbered
from jaxcircuits.attribution.selection import named_targets
from jaxcircuits.bulk import edge_statistics, processes
from jaxcircuits.bulk.edge_statistics import FILE as STATISTICS
from jaxcircuits.bulk.prompts import FILE, PromptRows, Prompts, Survey, write_prompts
from jaxcircuits.bulk.record import Kept, check_kept, difference, first_record, fitted, parts_of, plan_of
from jaxcircuits.bulk.run import Run, load_run
from jaxcircuits.bulk.store import RECORD, Store, file_entry, is_summed, read_record
from jaxcircuits.bulk.sums import Sums, remove_sums
from jaxcircuits.bulk.tables import Part, tables_of
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.files import absent_parents, remove_empty
from jaxcircuits.mesh import DATA, shape_of
from jaxcircuits.places import Place, Where
from jaxcircuits.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

BASELINE = "baseline.npy"

Targets = Sequence[tuple[int, int]] | None


def attribute_to_run(
    bundle: Bundle,
    settings: Settings,
    prompts: Prompts,
    out: Where,
    *,
    targets: Targets = None,
    memory: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    keep: int = 20,
    edges: bool = True,
    activations: bool = False,
    statistics: bool = False,
    mesh: Mesh | None = None,
    plan: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Run, Columns]:
    """Attributes prompts and writes a run directory; goes on with one that the same call began and did not end.

    Args:
        bundle: Model and SAEs.
        settings: What to attribute to what.
        prompts: From `read_prompts`.
        out: The directory to make, as a path or a URL.
        targets: `(position, feature)` to attribute in each prompt; by default every active one.
        memory: Bytes to plan for on each device; by default by what it has.
        overwrite: Whether to replace what is there.
        quiet: No progress bar.
        keep: How many of the strongest edges to return.
        edges: Whether to keep edges and targets.
        activations: Whether to keep the active features of both SAEs.
        statistics: Whether to keep what the edges of each pair of features amount to.
        mesh: This process's devices, from `make_mesh`; one by default.
        plan: That of a record, where it is to be repeated; by default a new one.
        say: Told what a user should know: parts that were there, or were damaged.

    Returns:
        The run and its `keep` edges of largest absolute attribution, strongest first.

    Raises:
        InputError: Settings, prompts or the output directory cannot be used. Parts that are finished stay, and the
            same call goes on from there.
    """
    engine = Engine(bundle, settings, memory, mesh)
    kept = Kept(edges, activations, statistics)
    check_kept(kept, asdict(settings), targets)
    asked = first_record(engine, bundle, prompts, targets, kept)
    place = Place(out)
    silent = quiet or not processes.is_first()
    with _begun(place, asked, overwrite, say) as store:
        if not store.record["finished"]:
            if processes.is_first():
                _prepare(store, engine, prompts, targets, plan, silent)
            processes.wait_until(lambda: _planned(store))
            engine.plan = plan_of(store.record)
            _load_baseline(store, engine)
            sums = Sums(store)
            _compute(store, sums, engine, targets, kept, silent)
            _finish(store, sums, kept)
    run = load_run(out)
    return run, run.strongest(keep if kept.edges else 0) if kept.edges else {}


# --- begin ----------------------------------------------------------------------------------------


@contextmanager
def _begun(place: Place, asked: dict[str, Any], overwrite: bool, say: Callable[[str], None]) -> Iterator[Store]:
    """The store of a new job or of one to go on with; what fails before a part counts leaves all as it was."""
    found = _same_job(place, asked, overwrite)
    absent = [] if place.local is None else absent_parents(place.local)
    processes.meet("looked")
    aside = None
    store = Store(place, asked if found is None else found)
    try:
        if processes.is_first():
            if found is None:
                aside = _set_aside(place)
                store.save()
            else:
                _go_on(store, say)
        processes.meet("begun")
        if not processes.is_first():
            store.record = read_record(place) or asked
        processes.meet("read")
        yield store
    except BaseException as error:
        if not processes.is_first():
            store.note_stop(jax.process_index(), str(error))
        elif found is None and not store.done and jax.process_count() == 1:
            place.clear()
            if aside is not None and place.local is not None:
                aside.rename(place.local)
            remove_empty(absent)
        elif isinstance(error, InputError) and store.record["plan"] is not None:
            parts = len(parts_of(store.record))
            finished = f"{len(store.done):,} of {parts:,} parts are finished; the same command goes on from there."
            raise InputError(f"{error} {finished}") from None
        raise
    if aside is not None:
        shutil.rmtree(aside)


def _same_job(place: Place, asked: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The record of the same job, if it was begun; `None` where there is none or it is to be replaced.

    Raises:
        InputError: The place holds something else.
    """
    if place.fs.isfile(place.root):
        raise InputError(
            f"the output {place.name} is a file, expected a directory that does not exist yet; name another."
        )
    if not place.exists(RECORD):
        if place.fs.isdir(place.root) and place.fs.ls(place.root):
            raise InputError(f"the output {place.name} holds something else than a run; name another.")
        return None
    if overwrite:
        return None
    found = read_record(place)
    assert found is not None
    other = difference(asked, found)
    if other is not None:
        raise InputError(
            f"the output {place.name} holds a run with {other}; pass --overwrite to replace it or name another."
        )
    return found


def _set_aside(place: Place) -> Path | None:
    """Moves away what is to be replaced; drops it elsewhere than on this machine, where nothing moves in one step."""
    if place.local is None:
        place.clear()
        return None
    if not place.exists(RECORD):
        return None
    aside = place.local.with_name(f".{place.local.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    place.local.rename(aside)
    return aside


def _go_on(store: Store, say: Callable[[str], None]) -> None:
    """Sees what of an earlier start is there."""
    store.remove_notes("stopped")
    store.take_up_notes()
    damaged = store.drop_damaged()
    sizes = store.place.sizes()
    files = store.record["files"]
    lost = [name for name, entry in files.items() if sizes.get(name) != entry["bytes"]]
    for name in lost:
        del files[name]
    for name in damaged:
        say(f"part {name} is not as it was written and is computed again.")
    if STATISTICS in lost:  # what they were merged from was removed
        store.record["parts"] = []
    if damaged or lost:
        store.record["finished"] = False
        store.save()
    elif store.record["finished"]:
        remove_sums(store.place)
    if store.record["finished"]:
        say(f"the run {store.place.name} was finished before; nothing is left to do.")
    elif store.done:
        say(f"going on: {len(store.done):,} of {len(parts_of(store.record)):,} parts were finished before.")


# --- prepare --------------------------------------------------------------------------------------


def _prepare(
    store: Store, engine: Engine, prompts: Prompts, targets: Targets, plan: Mapping[str, Any] | None, quiet: bool
) -> None:
    """Writes the prompts and makes the plan, as far as an earlier start has not."""
    record, place = store.record, store.place
    survey = None
    with progress(quiet) as bar:
        if FILE not in record["files"]:
            task = bar.add_task("reading", total=None)
            d_sae = engine.pair.target.cfg.d_sae

            def check(tokens: np.ndarray) -> None:
                if targets is not None:
                    named_targets(targets, d_sae, engine.counted(tokens))

            survey = write_prompts(place, prompts, engine.counted, check, lambda n: bar.update(task, advance=n))
            _describe(record, survey)
            record["files"][FILE] = file_entry(place, FILE)
        rows = PromptRows(place)
        record["plan"] = record["plan"] or plan
        if record["plan"] is None:
            assert survey is not None
            bar.add_task("planning", total=None)
            made = engine.make_plan(survey.sample, targets, _lengths(survey))
            engine.plan = fitted(made, survey.lengths, shape_of(engine.mesh)[DATA])
            record["plan"] = engine.plan.to_json()
        if engine.settings.derivative == "integrated" and BASELINE not in record["files"]:
            engine.plan = plan_of(record)
            task = bar.add_task("finding the mean", total=len(rows))
            engine.fit_baseline(_each_part(record, rows, lambda n: bar.update(task, advance=n)))
            content = BytesIO()
            np.save(content, np.asarray(engine.baseline))
            place.write(BASELINE, content.getvalue())
            record["files"][BASELINE] = file_entry(place, BASELINE)
    store.save()


def _describe(record: dict[str, Any], survey: Survey) -> None:
    """Notes what the prompts are.

    Raises:
        InputError: They are other ones than when the job began.
    """
    digest = survey.digest.hexdigest()
    if record["inputs"].setdefault("tokens_sha256", digest) != digest:
        raise InputError("the prompts are not those that the run began with; name another output.")
    record["inputs"] |= {"n_skipped": survey.n_skipped, "skipped": survey.skipped}
    record["prompts"] = survey.number
    record["tokens"] = int((survey.lengths * np.arange(len(survey.lengths))).sum())


def _lengths(survey: Survey) -> list[int] | None:
    """Lengths to plan by; `None` where the sample is all there is."""
    return None if survey.number == len(survey.sample) else survey.some_lengths()


def _each_part(
    record: dict[str, Any], rows: PromptRows, step: Callable[[int], Any]
) -> Iterator[list[tuple[int, np.ndarray]]]:
    for first, last in parts_of(record):
        yield [(row, rows[row]) for row in range(first, last)]
        step(last - first)


def _planned(store: Store) -> bool:
    """Whether there is a plan; takes up the record that has it."""
    if store.record["plan"] is None or FILE not in store.record["files"]:
        store.record = read_record(store.place) or store.record
    return store.record["plan"] is not None and FILE in store.record["files"]


def _load_baseline(store: Store, engine: Engine) -> None:
    if BASELINE in store.record["files"]:
        engine.baseline = np.load(BytesIO(store.place.read(BASELINE)), allow_pickle=False)


# --- compute --------------------------------------------------------------------------------------


def _compute(store: Store, sums: Sums, engine: Engine, targets: Targets, kept: Kept, quiet: bool) -> None:
    """Computes this process's share of the parts that do not count yet."""
    record = store.record
    bounds, rows = parts_of(record), PromptRows(store.place)
    done = [part for part in record["parts"] if part["part"] in store.done]
    todo = processes.share([number for number in range(len(bounds)) if number not in store.done])
    with progress(quiet, detail=True) as bar, Ahead() as lister, Ahead() as writer:
        seen = {
            "prompts": sum(part["prompts"][1] - part["prompts"][0] for part in done),
            "tokens": sum(part["tokens"] for part in done),
            "edges": sum(part["edges"]["rows"] for part in done if "edges" in part),
        }
        before, start = seen["tokens"], monotonic()
        total = record["tokens"] if jax.process_count() == 1 else None
        task = bar.add_task("attributing", total=total, completed=before, detail="")

        def write(number: int, entry: dict[str, Any], prompts: Numbered, listed: Callable[[], Listed]) -> None:
            part = Part(number, entry, prompts, listed())
            _store(store, sums, engine, part, kept)
            seen["prompts"] += len(prompts)
            seen["tokens"] += entry["tokens"]
            seen["edges"] += len(part.listed.edges["prompt"])
            rate = (seen["tokens"] - before) / (monotonic() - start)
            words = (
                f"{seen['prompts']:,} of {record['prompts']:,} stories · {rate:,.0f} tokens/s · {seen['edges']:,} edges"
            )
            bar.update(task, completed=seen["tokens"], detail=words)

        for number in todo:
            first, last = bounds[number]
            prompts = [(row, rows[row]) for row in range(first, last)]
            report = asdict(engine.report)
            listed = engine.listing(prompts, targets, lister)
            entry = {"prompts": [first, last], "tokens": sum(len(tokens) for _, tokens in prompts)}
            entry["report"] = {name: n - report[name] for name, n in asdict(engine.report).items()}
            writer.submit(write, number, entry, prompts, listed)


def _store(store: Store, sums: Sums, engine: Engine, part: Part, kept: Kept) -> None:
    """Stores a part and lets it count. Statistics, or merged sums, hold a part that was damaged since already."""
    summed = STATISTICS in store.record["files"] or is_summed(store.record["sums"], part.number)
    to_sum = kept.statistics and not summed
    held = to_sum and kept.edges and jax.process_count() == 1  # parts come in order, so few wait

    def summary(*of: "pa.Table") -> "dict[str, pa.Table]":
        return edge_statistics.partial_statistics(None if held else of[0], *of[1:])

    tables = tables_of(engine, part, kept, summary if to_sum else None)
    with Ahead() as beside:
        if held:
            beside.submit(sums.hold, part.number, tables["edges"])
        entry = store.write_part(part.number, part.entry, tables)
    if processes.is_first():
        store.count(entry)
        sums.compact()
    else:
        store.note(entry)


# --- finish ---------------------------------------------------------------------------------------


def _finish(store: Store, sums: Sums, kept: Kept) -> None:
    """Waits for all parts, merges what they say, and says that the run is finished.

    The sums that statistics are merged from are larger than these and all edges; they are not kept.
    """
    if not processes.is_first():
        processes.wait_until(lambda: _finished(store.place))
        return
    wanted = len(parts_of(store.record))
    if jax.process_count() > 1:
        processes.wait_until(lambda: store.take_up_notes() is None and len(store.done) == wanted)
    if kept.statistics and STATISTICS not in store.record["files"]:
        sums.merge()
        store.record["files"][STATISTICS] = file_entry(store.place, STATISTICS)
        store.record["sums"] = []
    store.record["finished"] = True
    store.save()
    store.remove_notes()
    remove_sums(store.place)


def _finished(place: Place) -> bool:
    record = read_record(place)
    return record is not None and record["finished"]


def next_free(parent: Where, stem: str) -> Path:
    """The first of `stem-001`, `stem-002` ... in a directory that does not exist yet."""
    number = 1
    while (Path(parent) / f"{stem}-{number:03d}").exists():
        number += 1
    return Path(parent) / f"{stem}-{number:03d}"
