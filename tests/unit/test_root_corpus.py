"""Every input that fuzzing the root:// door ever kept, and bytes that hypothesis makes of frames."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.net import xroot_frames as frames
from tests.fuzz import root_door

INPUTS = sorted((Path(__file__).parent.parent / "fuzz" / "root_door").glob("*"))


def test_there_is_a_corpus() -> None:
    assert len(INPUTS) >= len(root_door.seeds())


@pytest.mark.parametrize("part", range(8))
def test_what_fuzzing_kept_is_answered_in_whole_frames(part: int) -> None:
    for path in INPUTS[part::8]:
        root_door.check(path.read_bytes())


REQUESTS = st.builds(
    lambda stream, code, body, data: frames.request(stream, code, body, data),
    st.integers(0, 0xFFFF),
    st.integers(2998, 3034),
    st.one_of(st.binary(min_size=16, max_size=16), st.just(b"\0\0\0\1" + bytes(12))),
    st.one_of(st.binary(max_size=64), st.just(b"/rw/d/f"), st.just(b"/ro/d/f\0/rw/x"), st.just(b"/")),
)


@given(st.lists(st.one_of(REQUESTS, st.binary(max_size=40), st.just(root_door.PAUSE)), max_size=8))
def test_any_frames_are_answered_in_whole_frames(parts: list[bytes]) -> None:
    root_door.check(root_door.seeds()["read"] + b"".join(parts))
