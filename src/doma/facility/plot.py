"""The plot of the main job, in the style of the experiment."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from doma.facility.dimuon import BINS, HIGH, LOW, Spectrum


def dimuon(spectra: Mapping[str, Spectrum], path: Path, *, real: bool = True) -> None:
    """Draw the spectra on top of each other and write a PNG.

    The first is drawn as filled histogram, the others as points of growing size: equal histograms lie
    exactly on one another.

    Args:
        spectra: Road to spectrum.
        path: File to write.
        real: CMS open data of 2012 (8 TeV); otherwise events generated from them.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import mplhep

    edges = np.linspace(LOW, HIGH, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    with plt.style.context(mplhep.style.CMS):
        figure, axes = plt.subplots(figsize=(10, 8))
        for k, (name, found) in enumerate(spectra.items()):
            label = f"{name}: {found.pairs:,} pairs"
            if k == 0:
                mplhep.histplot(found.counts, edges, ax=axes, histtype="fill", alpha=0.35, label=label)
            else:
                axes.plot(centres, found.counts, "o", fillstyle="none", markersize=3 + 3 * k, label=label)
        axes.set_xlim(LOW, HIGH)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(r"$m_{\mu\mu}$ [GeV]")
        axes.set_ylabel("Pairs / 0.5 GeV")
        axes.legend(fontsize="x-small", loc="upper left")
        mplhep.cms.label("Open Data" if real else "generated", data=real, com=8, ax=axes, fontsize=20)
        figure.savefig(path, dpi=100, bbox_inches="tight")
        plt.close(figure)
