"""The sample files that come with the package, and a generator of larger ones like them.

The real file holds 100,000 dimuon events that CMS recorded in 2012 at 8 TeV (CMS Open Data, CC0); its
origin and those of the others stand in ``data/README.md`` beside them.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np

REAL = "cms_doublemuparked_100k.root"
OTHERS = ("nano_dy.root", "nano_dimuon.root")
CHUNK = 50_000


def sample(name: str) -> Path:
    """Where a sample file of the package lies.

    >>> sample(REAL).stat().st_size
    3568384
    """
    return Path(str(files("doma.facility") / "data" / name))


def generate(path: Path, events: int, seed: int = 1) -> Path:
    """Write a TTree of ``events`` dimuon events, drawn with replacement from the real file.

    The same (events, seed) give the same content; memory is bounded by chunks of 50,000 events.

    Args:
        path: File to write.
        events: Number of events, at least 1.
        seed: Seed of the draw.
    """
    import awkward as ak
    import uproot

    with uproot.open(sample(REAL)) as file:
        real = file["Events"].arrays(filter_name="Muon_*")
    muons = ak.zip({name.removeprefix("Muon_"): real[name] for name in real.fields})
    with uproot.recreate(path, compression=uproot.ZSTD(3)) as out:
        tree = out.mktree("Events", {"Muon": muons.type.content}, title="generated from CMS Open Data")
        for start in range(0, events, CHUNK):
            rng = np.random.default_rng([seed, start])
            rows = rng.integers(len(muons), size=min(CHUNK, events - start))
            tree.extend({"Muon": ak.to_packed(muons[rows])})
    return path
