"""``doma client``, ``doma user`` and ``doma keys`` as a user types them."""

import json

import pytest
from typer.testing import CliRunner

from doma.app.home import Home
from doma.app.identity import clients_of, users_of
from doma.auth.keys import KeySet
from doma.cli.command import app
from doma.core.errors import AlreadyExists, BadRequest, ConfigError, DomaError, NotFound


@pytest.fixture
def home(tmp_path):
    KeySet.load_or_make(tmp_path / "keys")
    return tmp_path


@pytest.fixture
def doma(home):
    def run(*words, text=None):
        result = CliRunner().invoke(app, [*words, "--home", str(home)], input=text)
        if isinstance(result.exception, DomaError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_a_clients_secret_is_alone_on_its_line_and_shown_once(doma, home):
    twice = ("--scope", "storage.read:/", "--scope", "fts")
    printed = doma("client", "add", "rucio", *twice, "--group", "/doma/x", "--lifetime", "6h")
    secret = printed.rstrip("\n")
    assert len(secret) == 43
    assert "\n" not in secret
    client = clients_of(Home(home)).authenticate("rucio", secret)
    assert (client.scopes, client.groups, client.lifetime) == (("storage.read:/", "fts"), ("/doma/x",), 21600)
    assert "rucio" in doma("client", "ls")
    listed = doma("client", "ls", "--json")
    assert [entry["id"] for entry in json.loads(listed)] == ["rucio"]
    assert secret not in listed
    assert "scrypt" not in listed
    with pytest.raises(AlreadyExists):
        doma("client", "add", "rucio", "--scope", "fts")
    assert json.loads(doma("client", "rm", "rucio", "--json")) == {"removed": "rucio"}
    with pytest.raises(NotFound):
        doma("client", "rm", "rucio")


def test_a_client_without_a_secret_gets_none(doma, home, tmp_path):
    assert doma("client", "add", "cli", "--scope", "storage.read:/", "--public") == ""
    keys = tmp_path / "k.json"
    keys.write_text(json.dumps({"keys": [{"kty": "EC", "kid": "1"}]}))
    told = json.loads(doma("client", "add", "key", "--scope", "fts", "--jwks", str(keys), "--json"))
    assert told == {"client_id": "key"}
    public, keyed = clients_of(Home(home))
    assert public.public
    assert "client_credentials" not in public.grants
    assert keyed.jwks == ({"kty": "EC", "kid": "1"},)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["client", "add", "a b", "--scope", "fts"], BadRequest),
        (["client", "add", "a", "--scope", "storage.read"], BadRequest),
        (["client", "add", "a", "--scope", "fts", "--group", "x"], BadRequest),
        (["client", "add", "a", "--scope", "fts", "--lifetime", "soon"], BadRequest),
        (["client", "add", "a", "--scope", "fts", "--grant", "password"], BadRequest),
        (["client", "add", "a", "--scope", "fts", "--profile", "saml"], BadRequest),
        (["client", "add", "a", "--scope", "fts", "--alg", "none"], BadRequest),
        (["client", "add", "a", "--scope", "fts", "--jwks", "/nowhere"], ConfigError),
        (["keys", "rotate", "--drop"], BadRequest),
        (["keys", "rotate", "--macaroons", "--now"], BadRequest),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else value.__name__,
)
def test_what_makes_no_sense_changes_nothing(doma, home, words, error):
    with pytest.raises(error):
        doma(*words)
    assert list(clients_of(Home(home))) == []


def test_a_file_with_a_private_key_is_not_taken(doma, tmp_path):
    keys = tmp_path / "k.json"
    keys.write_text(json.dumps({"kty": "EC", "d": "secret"}))
    with pytest.raises(ConfigError, match="private") as caught:
        doma("client", "add", "key", "--scope", "fts", "--jwks", str(keys))
    assert "secret" not in caught.value.message


def test_a_users_password_is_made_or_read(doma, home):
    made = doma("user", "add", "alice", "--scope", "storage.read:/", "--group", "/doma/x").strip()
    add = ("user", "add", "bob", "--scope", "storage.read:/", "--password-stdin")
    with pytest.raises(BadRequest, match="10 characters"):
        doma(*add, text="short\n")
    assert doma(*add, text="correct horse battery\n") == ""
    users = users_of(Home(home))
    assert users.authenticate("alice", made).groups == ("/doma/x",)
    assert users.authenticate("bob", "correct horse battery")
    assert [entry["id"] for entry in json.loads(doma("user", "ls", "--json"))] == ["alice", "bob"]
    doma("user", "rm", "bob")
    assert users.get("bob") is None
    assert list(clients_of(Home(home))) == []


def test_keys_rotate_and_say_from_when(doma, home):
    assert "sign from" in doma("keys", "rotate")
    assert json.loads(doma("keys", "rotate", "--now", "--drop", "--json")).keys() == {"signs_from"}
    assert len(KeySet.load_or_make(home / "keys").jwks()["keys"]) == 2
    doma("keys", "rotate", "--macaroons")
    assert (home / "keys" / "macaroon.key.previous").exists()


def test_a_home_that_is_none_is_not_made(tmp_path):
    result = CliRunner().invoke(app, ["client", "ls", "--home", str(tmp_path / "no")])
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "no").exists()
