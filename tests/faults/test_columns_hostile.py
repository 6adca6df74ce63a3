"""Random damage of small ROOT files, at length."""

from hypothesis import HealthCheck, given, settings

from tests.unit.columns_hostile import EDITS, PARTS, Ntuple, tried
from tests.unit.test_columns_hostile_random import reading

__all__ = ["reading"]


@settings(deadline=None, max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(part=PARTS, edits=EDITS)
def test_much_random_damage_gives_right_values_or_one_error_that_names_the_file(reading, part, edits):
    reader, made = reading
    tried(reader, made, part if isinstance(made, Ntuple) else "file", edits)
