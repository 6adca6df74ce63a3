"""How deep a path may lead."""

import pytest

from doma.core.errors import BadPath
from doma.core.paths import MAX_DEPTH, checked, normalise


@pytest.mark.parametrize("read", [normalise, checked])
def test_a_path_of_very_many_names_is_refused(read):
    assert read("/a" * MAX_DEPTH + "/") == "/a" * MAX_DEPTH
    assert read("/.//a" * MAX_DEPTH) == "/a" * MAX_DEPTH
    with pytest.raises(BadPath, match="at most"):
        read("/a" * (MAX_DEPTH + 1))
