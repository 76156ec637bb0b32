"""A run for reading: its tables as Arrow datasets, of which no more is read than what is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcircuits.attribution.edges import Columns
from jaxcircuits.bulk.prompts import FILE, PromptRows
from jaxcircuits.bulk.store import read_record
from jaxcircuits.errors import InputError
from jaxcircuits.places import Place, Where

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset as ds

KEPT = {
    "edges": "--edges",
    "targets": "--edges or --statistics",
    "activations": "--activations",
    "statistics": "--statistics",
}
"""Tables that a run may lack, and the option that decides."""


@dataclass(frozen=True)
class Run:
    """A run; what is finished of it, where it is not.

    Each table is a `pyarrow.dataset.Dataset`: `.to_table(columns=..., filter=...)`, `.to_batches()`, `.count_rows()`.

    Attributes:
        place: Its directory.
        record: What `run.json` says: settings, versions, device, hashes, plan, parts.
    """

    place: Place
    record: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Its directory on this machine.

        Raises:
            InputError: It lies elsewhere.
        """
        if self.place.local is None:
            raise InputError(f"the run {self.place.name} is not on this machine; copy it here first.")
        return self.place.local

    @property
    def finished(self) -> bool:
        """Whether all of its parts are there."""
        return bool(self.record["finished"])

    @property
    def edges(self) -> "ds.Dataset":
        """Every edge, in the order of prompts, targets and sources."""
        return self._parts("edges")

    @property
    def targets(self) -> "ds.Dataset":
        """Every target."""
        return self._parts("targets")

    @property
    def activations(self) -> "ds.Dataset":
        """Every active feature: side (0 source, 1 target), prompt, position, feature, activation."""
        return self._parts("activations")

    @property
    def prompts(self) -> "ds.Dataset":
        """The prompts: number, text, tokens."""
        return self._dataset([{"file": FILE, **self.record["files"][FILE]}])

    @property
    def statistics(self) -> "ds.Dataset":
        """What all edges of a pair of features amount to."""
        self._check_kept("statistics")
        if "statistics.parquet" not in self.record["files"]:
            raise InputError(f"the run {self.place.name} is not finished; run the same command again to resume it.")
        return self._dataset([{"file": "statistics.parquet", **self.record["files"]["statistics.parquet"]}])

    @property
    def tokens(self) -> PromptRows:
        """Token ids by prompt, read as they are asked for."""
        return PromptRows(self.place)

    def rows(self, kind: str) -> int:
        """How many edges, targets or activations there are, by the record alone."""
        return sum(part[kind]["rows"] for part in self.record["parts"] if kind in part)

    def to_pandas(self) -> "pd.DataFrame":
        """The edges as a pandas frame, all in memory."""
        return self.edges.to_table().to_pandas()

    def strongest(self, number: int) -> Columns:
        """The edges of largest absolute attribution, strongest first; reads only what can hold one of them."""
        import pyarrow.parquet as pq

        names = self.edges.schema.names
        groups = []
        for part in self.record["parts"]:
            with self.place.open(part["edges"]["file"]) as file:
                data = pq.ParquetFile(file).metadata
            for i in range(data.num_row_groups):
                found = data.row_group(i).column(names.index("attribution")).statistics
                bound = max(abs(found.min), abs(found.max)) if found is not None and found.has_min_max else np.inf
                groups.append((bound, part["edges"]["file"], i))
        kept, least = None, -1.0
        for bound, name, i in sorted(groups, key=lambda group: -group[0]):
            if kept is not None and bound < least:
                break
            with self.place.open(name) as file:
                table = pq.ParquetFile(file).read_row_group(i)
            size = np.abs(table.column("attribution").to_numpy())
            new = _columns(table.take(np.argsort(-size, kind="stable")[:number]))
            both = new if kept is None else {n: np.concatenate([kept[n], new[n]]) for n in names}
            size = np.abs(both["attribution"])
            # Of equal ones the earlier, whatever the order they are read in.
            place = [both[n] for n in ("source_feature", "source_pos", "target_feature", "target_pos", "prompt")]
            order = np.lexsort((*place, -size))[:number]
            kept = {n: values[order] for n, values in both.items()}
            least = float(size[order].min(initial=np.inf)) if len(order) == number else -1.0
        return _columns(self.edges.schema.empty_table()) if kept is None else kept

    def _parts(self, kind: str) -> "ds.Dataset":
        self._check_kept(kind)
        return self._dataset([part[kind] for part in self.record["parts"]])

    def _check_kept(self, kind: str) -> None:
        if kind not in self.record["kept"]:
            raise InputError(
                f"the run {self.place.name} kept no {kind}; it keeps what {KEPT[kind]} asks for when it is made."
            )

    def _dataset(self, files: list[Mapping[str, Any]]) -> "ds.Dataset":
        import pyarrow.dataset as ds

        if not files:
            raise InputError(f"the run {self.place.name} has no finished part yet; run the same command again.")
        sizes = self.place.sizes()
        for file in files:
            if sizes.get(file["file"]) != file["bytes"]:
                raise InputError(
                    f"the run {self.place.name} is damaged ({file['file']} has {sizes.get(file['file'], 0)} bytes, "
                    f"expected {file['bytes']}); run the same command again to mend it."
                )
        paths = [self.place.path(file["file"]) for file in files]
        return ds.dataset(paths, format="parquet", filesystem=self.place.fs)


def _columns(table: "pa.Table") -> Columns:
    return {name: table.column(name).to_numpy() for name in table.column_names}


def load_run(path: Where) -> Run:
    """Opens a run that `jaxcircuits attribute` wrote, also one that is not finished.

    Args:
        path: Its directory, as a path or a URL that fsspec knows.

    Raises:
        InputError: There is none, or another version wrote it.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from jaxcircuits import Settings, load_bundle, load_run
    >>> from jaxcircuits.bulk import attribute_to_run, read_prompts
    >>> bundle = load_bundle()
    >>> prompts = read_prompts(bundle, texts=["The dog ran to the park."])
    >>> place = Path(tempfile.mkdtemp(), "run")
    >>> _ = attribute_to_run(bundle, Settings(positions="all", top_k=3), prompts, place, quiet=True)
    >>> run = load_run(place)
    >>> run.finished, run.prompts.count_rows()
    (True, 1)
    >>> table = run.edges.to_table(columns=["source_feature", "attribution"])
    >>> table.num_rows == run.rows("edges")
    True
    """
    place = Place(path)
    record = read_record(place)
    if record is None or record["plan"] is None:
        raise InputError(f"there is no run in {path}; expected a directory with run.json, a plan in it.")
    return Run(place, record)
