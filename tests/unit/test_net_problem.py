"""Errors on the wire and back."""

import json
import pickle

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route

from doma.auth.bearer import bearer_of
from doma.core.errors import (
    BadCredential,
    DomaError,
    Forbidden,
    InvalidToken,
    NotFound,
    RangeNotSatisfiable,
    TooManyRequests,
    Unauthenticated,
    from_problem,
    problem,
)
from doma.net.problem import headers_of, install, raise_for, render


@pytest.mark.parametrize(
    "kind", [DomaError.family[code] for code in sorted(DomaError.family)], ids=sorted(DomaError.family)
)
def test_every_class_survives_the_wire_and_the_process_border(kind):
    error = kind("/a: is wrong; do b", retry_after=3.0, path="/a", near=["b"])
    over_http = from_problem(json.loads(json.dumps(problem(error))), kind.http)
    over_a_pipe = pickle.loads(pickle.dumps(error))
    for back in (over_http, over_a_pipe):
        assert (type(back), back.message, back.retry_after, back.detail) == (
            kind,
            error.message,
            3.0,
            error.detail,
        )


def test_codes_are_unique_and_statuses_are_errors():
    assert all(400 <= kind.http < 600 and 0 < kind.exit < 128 for kind in DomaError.family.values())


@given(
    st.dictionaries(
        st.text(max_size=8), st.none() | st.text(max_size=8) | st.integers() | st.lists(st.text(max_size=3))
    )
)
def test_no_problem_answer_can_break_the_client(body):
    assert isinstance(from_problem(body, 503), DomaError)


@pytest.mark.parametrize(
    ("error", "challenge"),
    [
        (Unauthenticated("x"), 'Bearer realm="se"'),
        (
            InvalidToken('aud is "a"\r\nEvil: b'),
            'Bearer realm="se", error="invalid_token", error_description="aud is \'a\'??Evil: b"',
        ),
        (
            Forbidden("no", scope="storage.read:/x"),
            'Bearer realm="se", error="insufficient_scope", error_description="no", scope="storage.read:/x"',
        ),
        (BadCredential("two"), 'Bearer realm="se", error="invalid_request", error_description="two"'),
    ],
)
def test_the_challenge_says_which_check_failed_and_cannot_be_broken_out_of(error, challenge):
    assert headers_of(error, "se")["WWW-Authenticate"] == challenge


def test_other_headers_belong_to_their_errors():
    assert headers_of(RangeNotSatisfiable("r", size=10), "se")["Content-Range"] == "bytes */10"
    assert headers_of(TooManyRequests("t", retry_after=0.2), "se")["Retry-After"] == "1"
    assert "WWW-Authenticate" not in headers_of(NotFound("n"), "se")


def test_two_different_tokens_are_a_bad_credential():
    with pytest.raises(BadCredential, match="two different"):
        bearer_of("Bearer a", "authz=b")


def test_text_is_the_default_and_json_comes_where_it_is_named():
    error = NotFound("/a: no such file")
    assert render(error, "*/*", "se")[2] == b"/a: no such file\n"
    status, headers, body = render(error, "application/json", "se")
    assert (status, headers["Content-Type"], json.loads(body)["message"]) == (
        404,
        "application/problem+json",
        error.message,
    )


@pytest.mark.parametrize("content", [b"", b"gone\n", b"\xff", b"{", b"[]", b'{"code": 3, "facts": []}'])
def test_an_answer_of_any_form_becomes_an_error_of_its_status(content):
    request = httpx.Request("GET", "https://se/a?authz=secret")
    answer = httpx.Response(
        404, content=content, headers={"content-type": "application/problem+json"}, request=request
    )
    with pytest.raises(NotFound) as caught:
        raise_for(answer)
    assert "secret" not in str(caught.value)


async def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_fault_of_ours(caplog):
    async def taken(request):
        await request.body()

    app = Starlette(routes=[Route("/a", taken, methods=["POST"])])
    install(app)
    said = []

    async def left():
        return {"type": "http.disconnect"}

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/a", "raw_path": b"/a", "query_string": b""}
    await app({**scope, "headers": [], "root_path": "", "scheme": "http", "server": ("a", 1)}, left, send)
    assert said[0]["status"] == 400
    assert not caplog.records
