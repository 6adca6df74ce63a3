import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.core.did import Did
from doma.core.errors import BadRequest


@given(
    st.from_regex(r"[a-zA-Z_\-.0-9]{1,25}", fullmatch=True),
    st.from_regex(r"/?[A-Za-z0-9][A-Za-z0-9.\-_/]{0,200}", fullmatch=True),
)
def test_what_is_written_is_read_back(scope, name):
    did = Did(scope, name)
    assert Did.parse(str(did)) == did


@pytest.mark.parametrize(
    "text",
    ["", "cms", ":name", "cms:", "c m s:x", "cms:a b", "cms:a:b", "x" * 26 + ":a", "cms:" + "a" * 251,
     "cms:-a", "cms://a", "cms:a\n", "cms\n:a"],
)  # fmt: skip
def test_what_is_no_identifier_is_refused(text):
    with pytest.raises(BadRequest):
        Did.parse(text)


def test_a_long_wrong_text_is_not_repeated_whole():
    with pytest.raises(BadRequest) as caught:
        Did.parse("é" * 10_000)
    assert len(caught.value.message) < 300
