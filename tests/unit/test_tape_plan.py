"""What a drive does next."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from doma.store.tape_plan import ARCHIVE, Load, Shares, next_cartridge, sweep


def served(shares, waiting, turns):
    plan, had = Shares(shares), dict.fromkeys(waiting, 0)
    for _ in range(turns):
        name = plan.first(waiting)
        plan.charge(name)
        had[name] += 1
    return had


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=2))
def test_activities_get_their_shares(shares):
    total = sum(shares.values())
    had = served(shares, list(shares), 50 * total)
    for name, share in shares.items():
        assert abs(had[name] - 50 * share) <= total


def test_what_is_not_listed_has_one_share():
    assert served({"a": 3}, ["a", "b"], 40) == {"a": 30, "b": 10}


def test_who_had_nothing_to_do_has_no_credit():
    plan = Shares({})
    for _ in range(1000):
        plan.first(["a"])
        plan.charge("a")
    had = {"a": 0, "b": 0}
    for _ in range(20):
        name = plan.first(["a", "b"])
        plan.charge(name)
        had[name] += 1
    assert had["a"] >= 9


def test_a_drive_stays_with_its_cartridge_while_it_is_that_activitys_turn():
    loads = [Load("V1", "a", 1, 5.0), Load("V2", "a", 9, 1.0)]
    assert next_cartridge(loads, Shares({}), mounted="V1", busy=()) == "V1"
    assert next_cartridge(loads, Shares({}), mounted="V3", busy=()) == "V2"
    assert next_cartridge(loads, Shares({}), mounted="V3", busy={"V2"}) == "V1"
    assert next_cartridge(loads, Shares({}), mounted=None, busy={"V1", "V2"}) is None


def test_writing_takes_its_turns_like_an_activity():
    loads = [Load("V1", "a", 100, 0.0), Load("", ARCHIVE, 100, 9.0)]
    plan, taken = Shares({"a": 3}), []
    for _ in range(40):
        cartridge = next_cartridge(loads, plan, mounted=None, busy=())
        plan.charge("a" if cartridge else ARCHIVE)
        taken.append(cartridge)
    assert taken.count("V1") == 30


@given(st.lists(st.integers(0, 1000)), st.integers(0, 1000))
def test_a_sweep_reads_everything_once_and_turns_back_at_most_once(positions, head):
    order = [positions[i] for i in sweep(positions, head)]
    assert sorted(order) == sorted(positions)
    way = [head, *order]
    assert sum(1 for a, b in pairwise(way) if b < a) <= 1
