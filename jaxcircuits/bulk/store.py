"""A run on disk: `run.json`, `prompts.parquet`, `edges/part-*.parquet`, `targets/part-*.parquet`.

A part counts when `run.json` names it, so that a half-written part is never read.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcircuits.attribution.edges import EDGE_COLUMNS, TARGET_COLUMNS, Columns, empty, to_arrow
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_json, sha256, write_json

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA = 1


class RunWriter:
    """Writes a run's parts into an empty directory; `finish` writes `run.json`, without which nothing counts."""

    def __init__(self, path: Path, edge_columns: Mapping[str, type], target_columns: Mapping[str, type]) -> None:
        self.path = path
        self.schemas = {"edges": edge_columns, "targets": target_columns}
        self.parts: list[dict[str, Any]] = []
        for name in ("edges", "targets"):
            (path / name).mkdir()

    def write(self, edges: Columns, targets: Columns, prompts: tuple[int, int]) -> None:
        """Writes one part: the edges and targets of prompts `first` up to, not including, `last`."""
        name = f"part-{len(self.parts):05d}.parquet"
        files = {}
        for kind, columns in (("edges", edges), ("targets", targets)):
            file = f"{kind}/{name}"
            write_parquet(self.path / file, to_arrow(columns, self.schemas[kind]))
            files[kind] = {"file": file, "rows": len(columns["prompt"]), "sha256": sha256(self.path / file)}
        self.parts.append({"prompts": list(prompts), **files})

    def finish(self, prompts: "pa.Table", description: Mapping[str, Any]) -> None:
        """Writes the prompts and, last, `run.json`."""
        write_parquet(self.path / "prompts.parquet", prompts)
        record = {"schema": SCHEMA, **description, "prompts": prompts.num_rows, "parts": self.parts}
        write_json(self.path / "run.json", record)


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Writes a table with zstd compression."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: Its directory.
        record: What `run.json` says: settings, versions, device, hashes, plan, parts.
    """

    path: Path
    record: Mapping[str, Any]

    @property
    def edges(self) -> "pa.Table":
        """Every edge, in the order of prompts, targets and sources."""
        return self._table("edges")

    @property
    def targets(self) -> "pa.Table":
        """Every target."""
        return self._table("targets")

    @property
    def prompts(self) -> "pa.Table":
        """The prompts: number, text, tokens."""
        import pyarrow.parquet as pq

        return pq.read_table(self.path / "prompts.parquet")

    def to_pandas(self) -> "pd.DataFrame":
        """The edges as a pandas frame."""
        return self.edges.to_pandas()

    def _table(self, kind: str) -> "pa.Table":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = EDGE_COLUMNS if kind == "edges" else TARGET_COLUMNS
        try:
            tables = [pq.read_table(self.path / part[kind]["file"]) for part in self.record["parts"]]
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"the run {self.path} is damaged ({str(error).splitlines()[0]}); run it again.") from None
        if not tables:
            return to_arrow(empty(schema), schema)
        return pa.concat_tables(tables)


def load_run(path: str | os.PathLike) -> Run:
    """Opens a run that `jaxcircuits attribute` wrote.

    Raises:
        InputError: There is none, or another version wrote it.
    """
    path = Path(path)
    if not (path / "run.json").is_file():
        raise InputError(f"there is no finished run in {path}; expected a directory with run.json.")
    record = read_json(path / "run.json", "run")
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"{path / 'run.json'}: expected a run of schema {SCHEMA}; run it again with this version.")
    return Run(path, record)
