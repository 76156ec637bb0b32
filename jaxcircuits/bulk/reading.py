"""A run's files, a part at a time."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxcircuits.bulk.run import Run
from jaxcircuits.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.compute import Expression


def read_part(run: Run, part: Mapping[str, Any], kind: str, rows: "Expression | None" = None) -> "pa.Table":
    """One kind of table of one part (an entry of `run.record["parts"]`); only some of its rows, if asked.

    Raises:
        InputError: The file is missing or damaged.
    """
    return _read(run, part[kind]["file"], rows)


def read_prompts_of(run: Run) -> "pa.Table":
    """The prompts, one row each, in order.

    Raises:
        InputError: The file is missing or damaged.
    """
    return _read(run, "prompts.parquet", None)


def _read(run: Run, file: str, rows: "Expression | None") -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(run.path / file, filters=rows)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"the run {run.path} is damaged ({str(error).splitlines()[0]}); run it again.") from None
