"""Whatever a client sends, it gets an answer that is not our fault."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pieces = st.sampled_from(
    [b"site", b"data", b"a", b"..", b".", b"", b"%2e%2e", b"%2F", b"%", b"%zz", b"%00", b"\xff",
     b"%ff", b"\xc3\xa9", b"%C3%A9", b"#", b"?x", b"\\", b".doma", b"~", b"a b", b"*", b"d", b"f"]
)  # fmt: skip
target = st.lists(pieces, max_size=6).map(lambda parts: b"/" + b"/".join(parts))
value = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=40)
header = st.dictionaries(
    st.sampled_from(
        ["depth", "destination", "overwrite", "if-match", "if-none-match", "source", "accept", "range",
         "host", "credential", "authorization"]
    ),
    value | st.sampled_from(["0", "1", "/site/d", "/site/a/f", "T", "F", "*", "https://[::1", "//x"]),
    max_size=4,
)  # fmt: skip
method = st.sampled_from(
    ["GET", "HEAD", "PUT", "DELETE", "MKCOL", "MOVE", "COPY", "PROPFIND", "PROPPATCH", "OPTIONS", "POST", "X"]
)
body = st.binary(max_size=60) | st.sampled_from([b'<propfind xmlns="DAV:"><allprop/></propfind>', b"<a>"])


@pytest.mark.parametrize("door", ["memory"], indirect=True)
def test_no_request_is_answered_with_an_internal_error(door):
    with asyncio.Runner() as runner:
        runner.run(door.put("/d/f"))

        @settings(max_examples=150, deadline=None, database=None)
        @given(method, target, header, body)
        def ask(verb, path, headers, data):
            answer = runner.run(door.ask(verb, path, door.everything, headers, data))
            assert answer.status < 500 or answer.status in {501, 502}, answer

        ask()
