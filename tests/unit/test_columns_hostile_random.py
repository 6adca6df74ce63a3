"""Random damage of small ROOT files, also under right checksums, minimised where it goes wrong."""

import pytest
from hypothesis import given, settings

from tests.unit.columns_hostile import EDITS, PARTS, Ntuple, Reader, Tree, tried


@pytest.fixture(scope="module", params=[(Ntuple, ("r", "x", "y", "z")), (Tree, ("x", "y", "z", "nz"))])
def reading(request, tmp_path_factory):
    """A file and who reads it."""
    kind, names = request.param
    folder = tmp_path_factory.mktemp("random")
    made = kind(folder / "base")
    with Reader(folder, names) as reader:
        assert {word for word, _ in reader.ask(made.crafted()).values()} == {"same"}
        yield reader, made


@settings(deadline=None, max_examples=150)
@given(part=PARTS, edits=EDITS)
def test_random_damage_gives_right_values_or_one_error_that_names_the_file(reading, part, edits):
    reader, made = reading
    tried(reader, made, part if isinstance(made, Ntuple) else "file", edits)
