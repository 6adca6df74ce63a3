"""The files that column delivery is measured on: real events, resampled, so every run has the same bytes.

Every event of a sample is one of the source, chosen at random; its angles are turned by one random angle,
so that no two copies are equal and compression works as hard as on data.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uproot

CLUSTER = 20_000
"""Events of a cluster: baskets of 80 KB for an event's number, of a few hundred for a muon's."""
Columns = dict[str, Any]


def adl(path: Path, source: Path, events: int) -> None:
    """The ADL benchmark's 86 branches, as TTree, RNTuple (``*.rntuple.root``) or Parquet by suffix."""
    table = pq.read_table(source)
    dense = {n: _dense(ak.from_arrow(table[n].combine_chunks())) for n in table.schema.names}
    _write(path, dense, events)


def nano(path: Path, source: Path, events: int) -> None:
    """NanoAOD of 1,499 branches as TTree."""
    with uproot.open(source) as file:
        tree = file["Events"]
        dense = {b.name: _dense(b.array()) for b in tree.branches if "char*" not in b.typename}
    _write(path, dense, events)


def _write(path: Path, dense: Columns, events: int) -> None:
    part = path.with_name(f"part-{path.name}")
    if path.suffix == ".parquet":
        _parquet(part, _chunks(dense, events))
    else:
        _root(part, _chunks(dense, events), ".rntuple" in path.suffixes)
    part.rename(path)


def _chunks(dense: Columns, events: int) -> Iterator[Columns]:
    rng = np.random.default_rng(20121)
    count = len(next(iter(dense.values())))
    for start in range(0, events, CLUSTER):
        size = min(CLUSTER, events - start)
        chosen = rng.integers(0, count, size)
        angle = rng.uniform(-np.pi, np.pi, size).astype(np.float32)
        chunk = {name: ak.to_packed(values[chosen]) for name, values in dense.items()}
        for name in chunk:
            if name.endswith("_phi"):
                turned = (chunk[name] + angle + np.pi) % (2 * np.pi) - np.pi
                chunk[name] = ak.values_astype(turned, np.float32)
        chunk["event"] = ak.values_astype(ak.Array(np.arange(start, start + size)), _dtype(chunk["event"]))
        yield chunk


def _dense(values: Any) -> Any:
    """Without options (Arrow marks columns as nullable; these hold no null)."""
    values = ak.without_parameters(values)
    for axis in range(values.ndim):
        values = ak.drop_none(values, axis=axis)
    return ak.to_packed(values)


def _dtype(values: Any) -> np.dtype[Any]:
    layout = values.layout
    while not layout.is_numpy:
        layout = layout.content
    found: np.dtype[Any] = np.dtype(layout.dtype)
    return found


def _parquet(path: Path, chunks: Iterator[Columns]) -> None:
    writer = None
    for chunk in chunks:
        arrays = {n: ak.to_arrow(a, list_to32=True, extensionarray=False) for n, a in chunk.items()}
        table = pa.table(arrays)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _root(path: Path, chunks: Iterator[Columns], ntuple: bool) -> None:
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        made = None
        for chunk in chunks:
            if ntuple:
                data: Any = ak.zip(chunk, depth_limit=1)
                if made is None:
                    made = file.mkrntuple("Events", data)
                else:
                    made.extend(data)
                continue
            data = _grouped(chunk)
            if made is None:
                types = {n: a.type if a.ndim > 1 else _dtype(a) for n, a in data.items()}
                made = file.mktree("Events", types)
            made.extend(data)


def _grouped(chunk: Columns) -> Columns:
    """Jagged columns with one counter as one record, which gives them one counting branch."""
    flat = {n: a for n, a in chunk.items() if a.ndim == 1}
    groups: dict[str, Columns] = {}
    alone: Columns = {}
    for name, values in chunk.items():
        if values.ndim == 1:
            continue
        group, _, member = name.partition("_")
        if member and f"n{group}" in flat:
            groups.setdefault(group, {})[member] = values
        else:
            alone[name] = values
    for group, members in groups.items():
        counts = ak.num(next(iter(members.values())))
        same = {m: v for m, v in members.items() if ak.all(ak.num(v) == counts)}
        alone[group] = ak.zip(same, depth_limit=2)
        alone |= {f"{group}_{m}": v for m, v in members.items() if m not in same}
    for name in (*groups, *alone):
        flat.pop(f"n{name}", None)
    return {**flat, **alone}
