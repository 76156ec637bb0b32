"""Progress bars on standard error, silent where nobody looks."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress(quiet: bool = False, detail: bool = False) -> Progress:
    """A progress bar for loops that may take longer than two seconds; disabled when quiet or not on a terminal.

    Args:
        quiet: Whether it is disabled.
        detail: Whether words, the field `detail` of a task, take the place of how much is done.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}") if detail else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )
