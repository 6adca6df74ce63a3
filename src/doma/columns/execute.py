"""One file from question to result: open, check names, evaluate step by step, write. Runs in a worker."""

import time
from collections.abc import Callable
from pathlib import Path

from doma.columns.model import Outcome, Progress, Task
from doma.columns.query import Tell, compile_query
from doma.columns.remote import Bytes, open_input
from doma.columns.sink import open_sink


def quiet(progress: Progress) -> None:
    """Tell nobody."""


def unwatched(data: Bytes) -> None:
    """Watch nothing."""


def execute(
    task: Task,
    tell: Tell = quiet,
    opened: Callable[[Bytes], None] = unwatched,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run a task.

    Args:
        task: What to do.
        tell: Hears of progress after every step.
        opened: Gets the input once it is open; its ``taken`` grows while the task runs.
        clock: Monotonic seconds.

    Raises:
        DomaError: what is wrong with the query or the file; no output is left then.
    """
    begun = clock()
    query = compile_query(task.codegen, task.selection, task.sandbox)
    data = open_input(task)
    if task.flight and task.output:
        from doma.columns.pushdown import Beside

        data = Beside(data, task)  # type: ignore[assignment]  # its facts are read-only, no one sets them
    opened(data)
    try:
        if data.version and data.version in task.known:
            return Outcome(data.version, True, read=data.taken, seconds=clock() - begun, url=data.url)
        last = Progress()

        def seen(progress: Progress) -> None:
            nonlocal last
            last = progress
            tell(progress)

        rows = size = 0
        if task.output:
            with open_sink(Path(task.output), task.format) as sink:
                columns = query.run(data, sink, task.step, seen)
                size, rows = sink.close(), sink.rows
        else:
            columns = query.check(data)
        took = clock() - begun
        log, pushed = getattr(query, "log", ""), getattr(data, "pushed", False)
        return Outcome(
            data.version, False, rows, size, data.taken, took, columns, last.of, data.url, log, pushed
        )
    finally:
        data.close()
