"""The dimuon mass: from muon columns to pairs to a histogram, and an independent way to the same numbers.

A pair is two muons of one event with opposite charge; its mass is the length of the sum of their
four-vectors, computed in float64 from the stored float32 columns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import hist
import numpy as np
import numpy.typing as npt
import vector

BINS, LOW, HIGH = 120, 60.0, 120.0
"""The histogram: 120 bins of 0.5 GeV."""

COLUMNS = ("Muon_pt", "Muon_eta", "Muon_phi", "Muon_mass", "Muon_charge")
TREE = "Events"


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What one road found."""

    pairs: int
    """Opposite-charge pairs of any mass."""
    counts: npt.NDArray[np.int64]
    """(120,) pairs per bin from 60 to 120 GeV."""

    def __add__(self, other: "Spectrum") -> "Spectrum":
        """The spectrum of both samples."""
        return Spectrum(self.pairs + other.pairs, self.counts + other.counts)


def axis() -> hist.axis.Regular:
    """The mass axis, in GeV."""
    return hist.axis.Regular(BINS, LOW, HIGH, name="mass", label=r"$m_{\mu\mu}$ [GeV]")


def masses(muons: Any) -> npt.NDArray[np.float64]:
    """Masses of all opposite-charge pairs, in GeV, event by event: shape (n_pairs,).

    Args:
        muons: Awkward record array with the jagged fields of :data:`COLUMNS`.
    """
    pt, eta, phi, mass = (ak.values_astype(muons[name], np.float64) for name in COLUMNS[:4])
    four = vector.zip({"pt": pt, "eta": eta, "phi": phi, "mass": mass})
    first, second = ak.unzip(ak.combinations(four, 2))
    one, two = ak.unzip(ak.combinations(muons["Muon_charge"], 2))
    opposite = (one != two) & (one + two == 0)
    return np.asarray(ak.flatten((first + second).mass[opposite]), dtype=np.float64)


def spectrum(muons: Any) -> Spectrum:
    """The dimuon spectrum of an awkward record array (see :func:`masses`)."""
    found = masses(muons)
    histogram = hist.Hist(axis(), storage=hist.storage.Int64())
    histogram.fill(found)
    return Spectrum(len(found), np.asarray(histogram.view(), dtype=np.int64))


def reference(path: Path) -> Spectrum:
    """The same by another way: plain uproot on a local file and NumPy only, no shared code with the roads.

    Momenta are summed in Cartesian components, pairs come from the offsets by plain index arithmetic, and
    NumPy fills the bins.
    """
    import uproot

    with uproot.open(path) as file:
        columns = file[TREE].arrays(list(COLUMNS), library="np")
    counts, pairs = np.zeros(BINS, np.int64), 0
    sizes = np.array([len(x) for x in columns["Muon_pt"]])
    for n in np.unique(sizes[sizes > 1]):
        rows = np.flatnonzero(sizes == n)
        pt, eta, phi, mass = (np.stack(columns[c][rows]).astype(np.float64) for c in COLUMNS[:4])
        charge = np.stack(columns["Muon_charge"][rows]).astype(np.int64)
        px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
        energy = np.sqrt(px**2 + py**2 + pz**2 + mass**2)
        i, j = np.triu_indices(n, 1)
        keep = charge[:, i] * charge[:, j] < 0
        square = (energy[:, i] + energy[:, j]) ** 2 - sum((p[:, i] + p[:, j]) ** 2 for p in (px, py, pz))
        found = np.sqrt(np.maximum(square[keep], 0.0))
        pairs += len(found)
        counts += np.histogram(found, BINS, (LOW, HIGH))[0]
    return Spectrum(pairs, counts)
