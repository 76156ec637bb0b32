"""Several processes at one job: each computes some parts with its own devices, the first writes the record.

They meet on JAX's own runtime (`jax.distributed`), and from then on by what they write into the run's directory, so no
computation waits for another machine.
"""

import time
from collections.abc import Callable

import jax

from jaxcircuits.errors import InputError

PAUSE = 0.2
"""Seconds between looks at what others have written."""


def join(coordinator: str | None, number: int | None, index: int | None, *, found: bool = False) -> None:
    """Joins the other processes of a job; before anything is computed.

    Args:
        coordinator: `HOST:PORT` of the first process; `None` for a job of one process, or one that is `found`.
        number: How many processes there are.
        index: Which of them this is.
        found: Whether JAX finds the others by itself, as on a TPU pod or under Slurm.

    Raises:
        InputError: Something is missing, or the others cannot be reached.
    """
    if coordinator is None and number is None and index is None and not found:
        return
    if not found and (coordinator is None or number is None or index is None):
        raise InputError(
            "a job of several processes needs --coordinator HOST:PORT, --num-processes and --process-id in each, "
            "or --distributed where JAX finds them by itself."
        )
    if index is not None and number is not None and not 0 <= index < number:
        raise InputError(f"--process-id must lie in 0..{number - 1}, got {index}.")
    try:
        jax.distributed.initialize(coordinator, number, index)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the other processes cannot be joined ({reason}); check the coordinator's address.") from None


def is_first() -> bool:
    """Whether this process writes the record."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def share(work: list[int]) -> list[int]:
    """What of some work is this process's."""
    return work[jax.process_index() :: jax.process_count()]


def wait_until(done: Callable[[], bool]) -> None:
    """Waits for what other processes write."""
    while not done():
        time.sleep(PAUSE)
