"""Progress of a column request on a terminal: files, events, bytes."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from doma.cli import show


class Bars:
    """Bars on standard error, while it is a terminal; nothing otherwise.

    Args:
        quiet: Nothing in any case.
    """

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True)
        self.shown = console.is_terminal and not quiet
        plain = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
        self._work = Progress(*plain, console=console, disable=not self.shown)
        sizes = (TextColumn("results"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
        self._down = Progress(*sizes, console=console, disable=not self.shown)
        self._files = self._work.add_task("files  ", total=None, told="")
        self._events = self._work.add_task("events ", total=None, told="")
        self._task = self._down.add_task("", total=None)

    def __enter__(self) -> Self:
        """Show the first two."""
        self._work.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave them as they are."""
        self._work.stop()
        self._down.stop()

    def tell(self, state: dict[str, Any]) -> None:
        """Show a state of the service's stream."""
        ended, failed = state["completed"] + state["failed"], state["failed"]
        told = f"{ended} of {state['files']} {state['status']}" + (f", {failed} failed" if failed else "")
        self._work.update(self._files, completed=ended, total=state["files"] or None, told=told)
        told = f"{state['passed']} of {state['entries']}, {show.size(state['read'])} read"
        self._work.update(self._events, completed=state["passed"], total=state["entries"] or None, told=told)

    def downloads(self, size: int) -> None:
        """The results are coming, so many bytes together."""
        self._work.stop()
        self._down.update(self._task, total=size)
        self._down.start()

    def got(self, size: int) -> None:
        """So many bytes more are here."""
        self._down.update(self._task, advance=size)
