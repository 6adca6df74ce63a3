"""The main job: the same dimuon histogram by four roads, each with what it cost.

direct      coffea on Dask reads the file from the storage endpoint ``site`` over https
cached      uproot reads it through the caching endpoint ``cache``: cold, then warm
delivered   a func_adl query to the column service; the result is read back as columns
scanned     filter and projection go to the scan service; Arrow comes back
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import uproot

from doma.core.checksum import hasher
from doma.core.errors import ChecksumMismatch, Inconsistent
from doma.core.paths import encode
from doma.facility.access import Access, received
from doma.facility.dimuon import COLUMNS, TREE, Spectrum, spectrum
from doma.net.problem import raise_for

PREFIX = "/demo"
"""Where the sample files go in the endpoint."""


@dataclass(frozen=True, slots=True)
class Road:
    """What one road found, and its cost."""

    name: str
    found: Spectrum
    events: int
    """Events that reached the client."""
    bytes_received: int
    """Body bytes that the client received."""
    bytes_origin: int
    """Bytes that were read from the storage endpoint for it."""
    seconds: float


def upload(access: Access, files: Mapping[str, Path], done: Callable[[int], None]) -> None:
    """Put files into ``site`` over https and compare the checksum that the storage answers.

    Args:
        access: The running system.
        files: Path in the endpoint to local file.
        done: Called with each number of bytes sent.

    Raises:
        ChecksumMismatch: the storage has other bytes than were sent.
    """
    with access.http() as http:
        for path, local in files.items():
            adler = hasher("adler32")

            def pieces(local: Path = local, adler: Any = adler) -> Iterator[bytes]:
                with local.open("rb") as file:
                    while piece := file.read(1 << 20):
                        adler.update(piece)
                        done(len(piece))
                        yield piece

            url = access.endpoint("site") + encode(path)
            size = str(local.stat().st_size)
            answer = raise_for(http.put(url, content=pieces(), headers={"Content-Length": size}))
            stored = answer.headers.get("Digest", "")
            if f"adler32={adler.hexdigest()}" not in stored:
                raise ChecksumMismatch(
                    f"{url}: stored with {stored or 'no digest'}, sent adler32={adler.hexdigest()}"
                )


def direct(access: Access, path: str, client: Any, chunk: int) -> Road:
    """Coffea's Runner on a Dask client, straight from ``site``."""
    from doma.facility.processor import run

    start = time.perf_counter()
    found, events, size = run(client, access, access.endpoint("site") + encode(path), chunk)
    return Road("direct", found, events, size, size, time.perf_counter() - start)


def through_cache(access: Access, path: str, name: str) -> tuple[Road, dict[str, int]]:
    """Plain uproot through ``cache``; also the cache's counters that this read moved."""
    before, start, bytes_before = cache_stats(access), time.perf_counter(), received()
    with uproot.open(access.endpoint("cache") + encode(path), **access.uproot_options()) as file:
        muons = file[TREE].arrays(list(COLUMNS))
    found = spectrum(muons)
    seconds, size = time.perf_counter() - start, received() - bytes_before
    moved = {key: value - before.get(key, 0) for key, value in cache_stats(access).items()}
    return Road(name, found, len(muons), size, moved["origin"], seconds), moved


def delivered(access: Access, path: str) -> Road:
    """A func_adl query to the column service; the muons of events with at least two come back."""
    from doma.facility.delivered import Delivered

    start = time.perf_counter()
    source = Delivered(access, [access.endpoint("site") + encode(path)], TREE)
    query = source.Where(lambda e: e.nMuon >= 2).Select(
        lambda e: {
            "Muon_pt": e.Muon_pt,
            "Muon_eta": e.Muon_eta,
            "Muon_phi": e.Muon_phi,
            "Muon_mass": e.Muon_mass,
            "Muon_charge": e.Muon_charge,
        }
    )
    muons = asyncio.run(query.value_async())  # func_adl's value() leaves its event loop open
    found = spectrum(muons)
    return Road("delivered", found, len(muons), source.received, source.read, time.perf_counter() - start)


def scanned(access: Access, path: str) -> Road:
    """Filter and projection pushed to the scan service; Arrow comes back."""
    import awkward as ak

    from doma.scan.client import scan

    start = time.perf_counter()
    dataset = scan(
        access.services["flight"], f"/site{path}", access.token(), access.ca_file, compression="lz4"
    )
    table = dataset.to_table(columns=list(COLUMNS), filter="nMuon >= 2")
    muons = ak.from_arrow(table)
    found = spectrum(muons)
    stats = dataset.stats()
    return Road(
        "scanned", found, len(muons), stats["bytes_sent"], stats["bytes_read"], time.perf_counter() - start
    )


def travel(
    access: Access, path: str, scratch: Path, step: Callable[[str], None]
) -> tuple[list[Road], dict[str, dict[str, int]]]:
    """All roads, one after the other.

    Args:
        access: The running system.
        path: The file in ``site``.
        scratch: Folder for Dask's own files.
        step: Told what begins.

    Returns:
        The roads, and for each read through the cache the counters that it moved.
    """
    from distributed import Client, LocalCluster

    step("direct: coffea on Dask")
    # two processes, as coffea runs on a facility
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(scratch)
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(_prepare)
        roads = [direct(access, path, client, chunk=100_000)]
    cache = {}
    for name in ("cached", "warm"):
        step(f"{name}: uproot through the cache")
        road, cache[name] = through_cache(access, path, name)
        roads.append(road)
    step("delivered: func_adl to the column service")
    roads.append(delivered(access, path))
    step("scanned: filter and projection at the storage")
    roads.append(scanned(access, path))
    return roads, cache


def _prepare() -> None:
    """Runs in each worker: imports are no part of the road, and heartbeats cut at the end no fault of it."""
    import_module("doma.facility.processor")
    # what a task raises reaches the client; a worker's own log tells only of a scheduler that stopped first
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)


def cache_stats(access: Access) -> dict[str, int]:
    """The byte counters of the cache: ``hit``, ``miss``, ``origin`` and so on."""
    with access.http() as http:
        found: dict[str, int] = raise_for(http.get("/api/v1/cache/stats")).json()["bytes"]
    return found


def check(roads: list[Road], expected: Spectrum) -> None:
    """All roads agree with the independent computation, integer for integer.

    Raises:
        Inconsistent: names the first road and bin that differ.
    """
    for road in roads:
        if road.found.pairs != expected.pairs:
            raise Inconsistent(f"{road.name}: {road.found.pairs} pairs, expected {expected.pairs}")
        different = np.flatnonzero(road.found.counts != expected.counts)
        if len(different):
            at = int(different[0])
            raise Inconsistent(
                f"{road.name}: bin {at} holds {road.found.counts[at]}, expected {expected.counts[at]}"
                f" ({len(different)} bins differ)"
            )
