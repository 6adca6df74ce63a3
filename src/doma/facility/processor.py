"""The coffea processor of the main job, and its run on a Dask cluster."""

import warnings
from typing import Any

import awkward as ak
import numpy as np
from coffea import processor
from coffea.nanoevents import NanoAODSchema

from doma.core.errors import CorruptFile
from doma.facility.access import Access, received
from doma.facility.dimuon import COLUMNS, TREE, Spectrum, spectrum


class Dimuon(processor.ProcessorABC):  # type: ignore[misc] # coffea publishes no types
    """Fills the dimuon spectrum of each chunk."""

    def process(self, events: Any) -> dict[str, Any]:
        """Pairs, counts and events of one chunk."""
        muons = ak.zip(
            {name: getattr(events.Muon, name.removeprefix("Muon_")) for name in COLUMNS}, depth_limit=1
        )
        found = spectrum(ak.materialize(muons))
        return {"pairs": found.pairs, "counts": found.counts, "events": len(events)}

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Nothing is left to do."""
        return accumulator


class Events(NanoAODSchema):  # type: ignore[misc] # coffea publishes no types
    """NanoAOD without run, luminosityBlock and event: the open-data dimuon file has none."""

    error_missing_event_ids = False
    warn_missing_crossrefs = False


def run(client: Any, access: Access, url: str, chunk: int) -> tuple[Spectrum, int, int]:
    """The spectrum of one remote file by coffea's Runner on a Dask client.

    Args:
        client: ``distributed.Client``.
        access: How to reach the system that serves the file.
        url: The file, ``https://…``.
        chunk: Events per task.

    Returns:
        The spectrum, the events read, and the body bytes that the workers received for it.
    """
    # coffea names, on every worker, each collection that a file of six branches lacks
    client.run(warnings.filterwarnings, "ignore", message="Missing ")
    before = sum(client.run(received).values())
    runner = processor.Runner(
        executor=processor.DaskExecutor(client=client, status=False, retries=1),
        schema=Events,
        chunksize=chunk,
        savemetrics=False,
        metadata_cache={},
    )
    out = runner({"dimuon": {"files": {url: TREE}}}, Dimuon(), uproot_options=access.uproot_options())
    if not isinstance(out, dict) or "counts" not in out:
        raise CorruptFile(f"{url}: coffea returned no histogram; is it a NanoAOD file with muons?")
    return (
        Spectrum(int(out["pairs"]), np.asarray(out["counts"], dtype=np.int64)),
        int(out["events"]),
        sum(client.run(received).values()) - before,
    )
