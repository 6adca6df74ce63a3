"""Row groups and the batches that are cut from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

MAX_ROWS = 64 << 10
MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Group:
    """Rows ``[start, stop)`` of a file; ``index`` is the format's own number of it."""

    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def batch_of(columns: dict[str, Any], order: Sequence[str], rows: int) -> pa.RecordBatch:
    """A batch of whole columns in this order; it keeps its number of rows without any."""
    if not order:
        return pa.RecordBatch.from_arrays([pa.nulls(rows)], ["x"]).select([])
    return pa.RecordBatch.from_arrays([columns[name] for name in order], list(order))


def portions(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in pieces fit to be sent: at most 64 Ki rows and about 16 MiB.

    >>> [b.num_rows for b in portions(pa.record_batch({"a": range(100_000)}))]
    [65536, 34464]
    """
    if not batch.num_rows:
        return
    by_size = max(int(batch.num_rows * MAX_BYTES / max(batch.nbytes, 1)), 1)
    step = min(MAX_ROWS, by_size)
    for start in range(0, batch.num_rows, step):
        yield batch.slice(start, step)
