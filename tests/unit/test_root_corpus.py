"""Every input that fuzzing either end of root:// ever kept, and bytes that hypothesis makes of frames."""

from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.net import xroot_frames as frames
from tests.fuzz import root_client, root_door

FUZZ = Path(__file__).parent.parent / "fuzz"
ENDS = pytest.mark.parametrize("end", [root_door, root_client], ids=["door", "client"])


def inputs(end: ModuleType) -> list[Path]:
    return sorted((FUZZ / end.__name__.rpartition(".")[2]).glob("*"))


@ENDS
def test_there_is_a_corpus(end: ModuleType) -> None:
    assert len(inputs(end)) >= len(end.seeds())


@ENDS
@pytest.mark.parametrize("part", range(8))
def test_what_fuzzing_kept_is_answered_in_whole_frames_and_ends_in_one_error(
    end: ModuleType, part: int
) -> None:
    for path in inputs(end)[part::8]:
        end.check(path.read_bytes())


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


ANSWERS = st.builds(
    lambda status, body: root_client.MINE + status.to_bytes(2, "big") + len(body).to_bytes(4, "big") + body,
    st.sampled_from([0, *range(4000, 4008)]),
    st.one_of(st.binary(max_size=64), st.just(b"7 9000 48 1\0"), st.just(bytes(12) + b"7 9000 48 1\0")),
)


@given(
    st.integers(0, 31),
    st.booleans(),
    st.lists(st.one_of(ANSWERS, st.binary(max_size=40), st.just(root_client.PAGES + bytes(60))), max_size=8),
)
def test_any_answers_give_a_client_a_result_or_one_error(act: int, tls: bool, answers: list[bytes]) -> None:
    begin = root_client.seeds()["stat-tls" if tls else "stat"][1:].split(root_door.PAUSE)[:3]
    root_client.check(bytes([act]) + root_door.PAUSE.join([*begin, *answers]))
