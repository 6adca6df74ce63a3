"""Forms and client credentials as anything may send them: read, or refused in OAuth's words."""

import base64
from itertools import count
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.auth.clients import Clients
from doma.auth.oauth import ASSERTION, MAX_FORM, Authenticator, Form, OAuthError, read_form

ERRORS = {"invalid_request", "invalid_client"}


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    # a minute goes by between any two, as the same name may come often
    clock = count(0.0, 60.0).__next__
    clients = Clients(tmp_path_factory.mktemp("oauth") / "clients.json", clock)
    clients.add("a", ["fts"], secret="s")
    clients.add("cli", ["fts"], public=True)
    return clients


class Never:
    def once(self, name, client, expires, now):
        raise AssertionError("nothing forged comes so far")


def client(clients, form, authorization=None):
    return Authenticator(clients, frozenset({"https://h/v"}), Never()).client(form, authorization, 0.0)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_form_or_a_clear_refusal(body):
    try:
        found = read_form(body)
    except OAuthError as e:
        found = e
    assert isinstance(found, Form) or (found.error, found.status) == ("invalid_request", 400)


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=8))
def test_an_encoded_form_comes_back_as_it_was(fields):
    fields = {k: v for k, v in fields.items() if k not in {"audience", "resource"}}
    assert dict(read_form(urlencode(fields, errors="surrogatepass").encode()).single) == {
        k.encode("utf-8", "surrogatepass").decode("utf-8", "replace"):
        v.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        for k, v in fields.items()
    }  # fmt: skip


def test_a_form_has_bounds_and_says_nothing_twice():
    for body, status in ((b"a=" + b"x" * MAX_FORM, 413), (b"a=1&a=2", 400), (b"a=1&" * 200, 400)):
        with pytest.raises(OAuthError) as caught:
            read_form(body)
        assert caught.value.status == status
    assert read_form(b"a=1&a=1&audience=x y&audience=z&resource=x").audience == ("x", "y", "z")


@settings(max_examples=60)
@given(
    st.one_of(
        st.text(max_size=60),
        st.binary(max_size=60).map(lambda data: "Basic " + base64.b64encode(data).decode()),
        st.tuples(st.text(max_size=9), st.text(max_size=9)).map(
            lambda pair: "Basic " + base64.b64encode(":".join(pair).encode("utf-8", "replace")).decode()
        ),
    )
)
def test_any_credential_is_refused_as_a_client_unless_it_is_one(clients, header):
    with pytest.raises(OAuthError) as caught:
        client(clients, Form({}), header)
    assert (caught.value.error, caught.value.status) == ("invalid_client", 401)
    assert "WWW-Authenticate" in caught.value.headers


@given(
    st.one_of(
        st.text(max_size=80), st.from_regex(r"[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{1,9}")
    )
)
def test_any_assertion_is_refused_unless_a_registered_key_signed_it(clients, text):
    form = Form({"client_assertion_type": ASSERTION, "client_assertion": text})
    with pytest.raises(OAuthError) as caught:
        client(clients, form)
    assert caught.value.error == "invalid_client"


@pytest.mark.parametrize(
    ("fields", "authorization"),
    [
        ({"client_id": "a"}, None),
        ({"client_id": "nobody"}, None),
        ({}, None),
        ({"client_id": "cli", "client_secret": "guess"}, None),
        ({"client_id": "cli", "client_secret": ""}, None),
        ({"client_id": "a", "client_secret": "s", "client_assertion": "x"}, None),
        ({"client_id": "cli"}, "Basic " + base64.b64encode(b"a:s").decode()),
        ({"client_secret": "s"}, "Basic " + base64.b64encode(b"a:s").decode()),
    ],
    ids=str,
)
def test_only_a_public_client_needs_no_proof_and_nobody_has_two(clients, fields, authorization):
    assert client(clients, Form({"client_id": "cli"})).id == "cli"
    assert client(clients, Form({}), "Basic " + base64.b64encode(b"a:s").decode()).id == "a"
    with pytest.raises(OAuthError) as caught:
        client(clients, Form(fields), authorization)
    assert caught.value.error in ERRORS
