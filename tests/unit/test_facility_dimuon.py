"""The physics of the main job, against a computation in plain Python."""

import math
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from doma.core.errors import Inconsistent
from doma.facility.dimuon import BINS, COLUMNS, HIGH, LOW, Spectrum, masses, reference, spectrum
from doma.facility.roads import Road, check
from doma.facility.sample import REAL, generate, sample


def muons(*events):
    """Awkward record array of the columns from tuples (pt, eta, phi, mass, charge) per muon."""
    return ak.zip(
        {
            name: ak.values_astype(
                ak.Array([[m[k] for m in event] for event in events]), np.float32 if k < 4 else np.int32
            )
            for k, name in enumerate(COLUMNS)
        },
        depth_limit=1,
    )


def by_hand(one, two):
    def four(pt, eta, phi, m):
        px, py, pz = pt * math.cos(phi), pt * math.sin(phi), pt * math.sinh(eta)
        return math.sqrt(px * px + py * py + pz * pz + m * m), px, py, pz

    e, x, y, z = (a + b for a, b in zip(four(*one[:4]), four(*two[:4]), strict=True))
    return math.sqrt(e * e - x * x - y * y - z * z)


def test_the_mass_of_a_pair_is_the_length_of_its_summed_four_vectors():
    a, b = (45.5, 0.5, 0.25, 0.125, 1), (44.5, -0.5, 3.25, 0.125, -1)
    assert masses(muons([a, b])).tolist() == pytest.approx([by_hand(a, b)], rel=1e-12)


def test_all_opposite_charge_pairs_of_an_event_count_and_no_others():
    plus, minus = (40.0, 0.0, 0.0, 0.125, 1), (40.0, 0.0, 3.0, 0.125, -1)
    found = spectrum(
        muons([], [plus], [plus, plus], [plus, minus], [plus, plus, minus], [minus, plus, minus, plus])
    )
    assert found.pairs == 0 + 0 + 0 + 1 + 2 + 4


def test_masses_outside_the_window_are_pairs_but_fill_no_bin():
    found = spectrum(muons([(5.0, 0.0, 0.0, 0.125, 1), (5.0, 0.0, 3.0, 0.125, -1)]))
    assert (found.pairs, int(found.counts.sum())) == (1, 0)


def test_two_ways_to_the_spectrum_of_the_real_file_agree_integer_for_integer():
    with uproot.open(sample(REAL)) as file:
        found = spectrum(file["Events"].arrays(list(COLUMNS)))
    expected = reference(sample(REAL))
    assert found.pairs == expected.pairs == 130_037
    assert found.counts.tolist() == expected.counts.tolist()
    peak = LOW + (HIGH - LOW) / BINS * int(np.argmax(found.counts))
    assert 89 < peak < 93  # the Z


def test_the_generator_is_seeded_and_keeps_the_schema(tmp_path: Path):
    def content(path):
        with uproot.open(path) as file:
            return file["Events"].arrays()

    one, same, other = (
        content(generate(tmp_path / f"{k}.root", 2500, seed)) for k, seed in enumerate((7, 7, 8))
    )
    assert len(one) == 2500
    assert set(one.fields) == {"nMuon", *COLUMNS}
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


def test_a_single_different_bin_is_named():
    good = Spectrum(3, np.arange(BINS))
    bad = Spectrum(3, np.arange(BINS) + (np.arange(BINS) == 17))
    roads = [Road("direct", good, 1, 1, 1, 0.1), Road("scanned", bad, 1, 1, 1, 0.1)]
    check(roads[:1], good)
    with pytest.raises(Inconsistent, match="scanned: bin 17 holds 18, expected 17"):
        check(roads, good)
