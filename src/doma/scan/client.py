"""Datasets behind a scan service, for everybody who takes a ``pyarrow.dataset.Dataset``.

    >>> events = scan("grpc+tls://host:port", "/site/events.root", token)           # doctest: +SKIP
    >>> events.to_table(columns=["Muon_pt"], filter="any(Muon.pt > 20)")            # doctest: +SKIP

Filters and projections run beside the data; rows come back in file order.

Source: scan.md §1.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from doma.core.errors import BadQuery, NotAllowed
from doma.scan import convert, jsontext, text
from doma.scan.connection import Remote, Token

_POISON = pa.table({"use the methods of the remote dataset itself": pa.array([], pa.null())})
_LOOPBACK = ("grpc://127.", "grpc+tls://127.", "grpc://localhost", "grpc+tls://localhost", "grpc://[::1]")


def scan(
    url: str,
    dataset: str,
    token: Token = None,
    ca: str | os.PathLike[str] | bytes | None = None,
    *,
    tree: str | None = None,
    compression: str | None = None,
) -> "RemoteDataset":
    """A dataset of a scan service.

    Args:
        url: ``grpc+tls://host:port`` (``grpc://`` on loopback).
        dataset: ``/<endpoint>/<path>`` of a Parquet or ROOT file, or a glob of it.
        token: Bearer token, or what gives a fresh one for each call (it must be picklable to travel).
        ca: PEM text or file of the certificate authority; None: the system's.
        tree: Tree or RNTuple of a ROOT file; None: the only one with entries.
        compression: ``none``, ``lz4`` or ``zstd``; None: none on loopback, else lz4.
    """
    chosen = compression or ("none" if url.startswith(_LOOPBACK) else "lz4")
    options: dict[str, Any] = {"compression": chosen} | ({"tree": tree} if tree is not None else {})
    return RemoteDataset(Remote(url, token, ca), {"v": 1, "from": dataset, "options": options})


class RemoteDataset(ds.InMemoryDataset):  # type: ignore[misc]  # pyarrow has no types
    """A dataset whose rows stay where they are.

    The C++ object below holds an empty table with a telling name, so that code which bypasses these methods
    meets a missing column and no null pointer.
    """

    def __init__(
        self,
        remote: Remote,
        query: Mapping[str, Any],
        schema: pa.Schema | None = None,
        part: int | None = None,
    ) -> None:
        super().__init__(_POISON)
        self.remote = remote
        self.part = part
        self.query: dict[str, Any] = dict(query)
        self._known = schema

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteDataset, (self.remote, self.query, self._known, self.part)

    def __repr__(self) -> str:
        return f"<RemoteDataset {self.query['from']} at {self.remote.url}>"

    @property
    def schema(self) -> pa.Schema:
        if self._known is None:
            self._known = self.remote.info({k: v for k, v in self.query.items() if k != "where"}).schema
        return self._known

    @property
    def partition_expression(self) -> pc.Expression:
        return pc.scalar(True)

    @property
    def _scan_options(self) -> dict[str, Any]:
        # Makes ds.dataset([a, b]) refuse with its own text instead of uniting empty tables.
        return {"remote": self.query["from"]}

    def _scanner_options(self, options: Any) -> Any:
        return options

    def _get_fragments(self, filter: Any = None) -> Iterator["RemoteFragment"]:
        return self.get_fragments(filter)

    def get_fragments(self, filter: Any = None) -> Iterator["RemoteFragment"]:
        """One fragment for each base file."""
        query = _cut(self.query, filter)
        parts = range(len(self.files)) if self.part is None else (self.part,)
        for part in parts:
            yield RemoteFragment(RemoteDataset(self.remote, query, self.schema, part))

    @property
    def files(self) -> list[str]:
        """Names of the base files."""
        return [file["file"] for file in self.explain()["files"]]

    def scanner(self, columns: Any = None, filter: Any = None, **hints: Any) -> "RemoteScanner":
        """A scan of it.

        Args:
            columns: Names; a dict of name to expression; [] for row counts alone; None for all.
            filter: A pyarrow Expression, a cut as text (``any(Muon.pt > 20)``) or in the JSON form.
            **hints: Batch sizes, read-ahead, threads, pools: taken and left to the service.
        """
        _check_hints(hints)
        return RemoteScanner(self, _cut(self.query, filter) | _columns(columns))

    def to_table(self, columns: Any = None, filter: Any = None, **hints: Any) -> pa.Table:
        return self.scanner(columns, filter, **hints).to_table()

    def to_batches(self, columns: Any = None, filter: Any = None, **hints: Any) -> Iterator[pa.RecordBatch]:
        return self.scanner(columns, filter, **hints).to_batches()

    def count_rows(self, filter: Any = None, **hints: Any) -> int:
        return self.scanner([], filter, **hints).count_rows()

    def head(self, num_rows: int, columns: Any = None, filter: Any = None, **hints: Any) -> pa.Table:
        return self.scanner(columns, filter, **hints).head(num_rows)

    def take(self, indices: Any, columns: Any = None, filter: Any = None, **hints: Any) -> pa.Table:
        return self.scanner(columns, filter, **hints).take(indices)

    def filter(self, expression: Any) -> "RemoteDataset":
        """The dataset cut to rows that pass; cuts add up."""
        return RemoteDataset(self.remote, _cut(self.query, expression), self._known, self.part)

    def replace_schema(self, schema: pa.Schema) -> "RemoteDataset":
        """The same columns in the order of a schema; types stay as they are stored."""
        mine = self.schema
        for field in schema:
            if field.name not in mine.names or mine.field(field.name).type != field.type:
                raise BadQuery(f"schema: {field.name!r} is not a {field.type} here; cast the result")
        return RemoteDataset(self.remote, self.query, pa.schema(list(schema)), self.part)

    def sort_by(self, sorting: Any, **kwargs: Any) -> Any:
        return _local(self).sort_by(sorting, **kwargs)

    def join(self, right_dataset: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
        return _local(self).join(_local(right_dataset), keys, *args, **kwargs)

    def join_asof(
        self, right_dataset: Any, on: Any, by: Any, tolerance: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return _local(self).join_asof(_local(right_dataset), on, by, tolerance, *args, **kwargs)

    def explain(self, columns: Any = None, filter: Any = None) -> dict[str, Any]:
        """What a scan would read: files, row groups, columns."""
        query = _cut(self.query, filter) | _columns(columns)
        found: dict[str, Any] = self.remote.act("explain", jsontext.write(query).encode())
        return found

    def stats(self) -> dict[str, Any]:
        """What the last scan of it cost: ``bytes_read`` from the store, ``bytes_sent``, rows, batches."""
        if self.remote.last is None:
            raise BadQuery("stats: no scan has been made yet; read something first")
        found: dict[str, Any] = self.remote.act("stats", self.remote.last.encode())
        return found

    def cancel(self) -> None:
        """Stop the last scan."""
        if self.remote.last is not None:
            self.remote.act("cancel", self.remote.last.encode())


class RemoteScanner(ds.Scanner):  # type: ignore[misc]  # pyarrow has no types
    """One scan, ready to run; each method runs it anew."""

    def __init__(self, dataset: RemoteDataset, query: Mapping[str, Any]) -> None:
        self._dataset = dataset
        self._query = dict(query)
        self._info: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteScanner, (self._dataset, self._query)

    @property
    def dataset_schema(self) -> pa.Schema:
        return self._dataset.schema

    @property
    def projected_schema(self) -> pa.Schema:
        if self._info is None:
            self._info = self._dataset.remote.info(self._named())
        return self._info.schema

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        # A ticket that was only looked at (projected_schema) is used up here; later runs plan anew.
        info, self._info = self._info or self._dataset.remote.info(self._named()), None
        part = self._dataset.part
        return self._dataset.remote.stream(
            info.endpoints if part is None else info.endpoints[part : part + 1]
        )

    def scan_batches(self) -> Iterator[Any]:
        raise NotAllowed("scan_batches: tagged batches are not offered over the network; use to_batches")

    def to_reader(self) -> pa.RecordBatchReader:
        schema = self.projected_schema
        return pa.RecordBatchReader.from_batches(schema, self.to_batches())

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def to_table(self) -> pa.Table:
        schema = self.projected_schema
        batches = list(self.to_batches())
        if not len(schema):
            return _rows_alone(sum(batch.num_rows for batch in batches))
        return pa.Table.from_batches(batches, schema)

    def count_rows(self) -> int:
        query = self._query | {"columns": []}
        return sum(batch.num_rows for batch in RemoteScanner(self._dataset, query).to_batches())

    def head(self, num_rows: int) -> pa.Table:
        count = max(num_rows, 0)
        if self._dataset.part is None:
            return RemoteScanner(self._dataset, self._query | {"limit": count}).to_table()
        # The service counts a limit over all files; one file is stopped here.
        schema, batches, rows = self.projected_schema, [], 0
        for batch in self.to_batches():
            batches.append(batch)
            rows += batch.num_rows
            if rows >= count:
                break
        return pa.Table.from_batches(batches, schema).slice(0, count)

    def take(self, indices: Any) -> pa.Table:
        """Rows by number in the result; streams and keeps only those."""
        wanted = indices if isinstance(indices, pa.Array | pa.ChunkedArray) else pa.array(indices, pa.int64())
        numbers = [int(n) for n in wanted.to_pylist()]
        unique = sorted(set(numbers))
        pieces, start = [], 0
        for batch in self.to_batches():
            here = [n - start for n in unique if start <= n < start + batch.num_rows]
            if here:
                pieces.append(batch.take(pa.array(here)))
            start += batch.num_rows
            if not unique or start > unique[-1]:
                break
        if unique and (unique[0] < 0 or unique[-1] >= start):
            raise BadQuery(f"take: row {unique[-1]} is outside of the {start} rows")
        found = pa.Table.from_batches(pieces, self.projected_schema)
        places = {number: place for place, number in enumerate(unique)}
        return found.take(pa.array([places[n] for n in numbers], pa.int64()))

    @staticmethod
    def from_dataset(dataset: Any, **options: Any) -> Any:
        return dataset.scanner(**options)

    @staticmethod
    def from_fragment(fragment: Any, **options: Any) -> Any:
        return fragment.scanner(**options)

    @staticmethod
    def from_batches(source: Any, **options: Any) -> Any:
        return ds.Scanner.from_batches(source, **options)

    def _named(self) -> dict[str, Any]:
        known = self._dataset._known
        if "columns" not in self._query and known is not None:
            return self._query | {"columns": list(known.names)}
        return self._query


class RemoteFragment(ds.Fragment):  # type: ignore[misc]  # pyarrow has no types
    """One base file of a remote dataset."""

    def __init__(self, dataset: RemoteDataset) -> None:
        self._dataset = dataset

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFragment, (self._dataset,)

    def __repr__(self) -> str:
        return f"<RemoteFragment {self._dataset.query['from']}>"

    @property
    def physical_schema(self) -> pa.Schema:
        return self._dataset.schema

    @property
    def partition_expression(self) -> pc.Expression:
        return pc.scalar(True)

    def scanner(self, schema: pa.Schema | None = None, **options: Any) -> RemoteScanner:
        """A scan of this file; arguments as of the dataset."""
        return (self._dataset if schema is None else self._dataset.replace_schema(schema)).scanner(**options)

    def to_batches(self, schema: pa.Schema | None = None, **options: Any) -> Iterator[pa.RecordBatch]:
        return self.scanner(schema, **options).to_batches()

    def to_table(self, schema: pa.Schema | None = None, **options: Any) -> pa.Table:
        return self.scanner(schema, **options).to_table()

    def count_rows(self, **options: Any) -> int:
        return self._dataset.count_rows(**options)

    def head(self, num_rows: int, **options: Any) -> pa.Table:
        return self._dataset.head(num_rows, **options)

    def take(self, indices: Any, **options: Any) -> pa.Table:
        return self._dataset.take(indices, **options)


_HINTS = frozenset(
    {
        *("batch_size", "batch_readahead", "fragment_readahead", "fragment_scan_options"),
        *("use_threads", "cache_metadata", "memory_pool"),
    }
)


def _check_hints(hints: Mapping[str, Any]) -> None:
    unknown = set(hints) - _HINTS
    if unknown:
        raise TypeError(f"scanner() got an unexpected keyword argument {min(unknown)!r}")


def _cut(query: dict[str, Any], cut: Any) -> dict[str, Any]:
    """The query with one more cut."""
    if cut is None:
        return query
    more = _expression(cut)
    held = query.get("where")
    return query | {"where": more if held is None else {"and": [held, more]}}


def _expression(value: Any) -> Any:
    if isinstance(value, pc.Expression):
        return convert.expression(value)
    if isinstance(value, str):
        return text.expression(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise BadQuery(
        f"filter: {type(value).__name__} is no cut; give a pyarrow Expression, text or the JSON form"
    )


def _columns(columns: Any) -> dict[str, Any]:
    if columns is None:
        return {}
    if isinstance(columns, Mapping):
        return {"columns": [{"as": name, "expr": _expression(value)} for name, value in columns.items()]}
    return {"columns": list(columns)}


def _local(dataset: Any) -> Any:
    if not isinstance(dataset, RemoteDataset):
        return dataset
    # Buffers of the network lie at odd addresses, which pyarrow's joins complain about: copied once.
    sink = pa.BufferOutputStream()
    table = dataset.to_table()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return ds.InMemoryDataset(pa.ipc.open_stream(sink.getvalue()).read_all())


def _rows_alone(count: int) -> pa.Table:
    """A table of so many rows without columns."""
    return pa.table({"x": pa.nulls(count)}).select([])


__all__ = ["Remote", "RemoteDataset", "RemoteFragment", "RemoteScanner", "scan"]
