"""Who may ask without a token in single-user mode."""

import os

import pytest
from starlette.requests import Request

from doma.web.access import is_local, is_own


def asked(client="127.0.0.1", host="127.0.0.1:8443", **headers):
    sent = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in sent.items()]
    scope = {"type": "http", "method": "GET", "scheme": "http", "path": "/servicex", "query_string": b""}
    return Request(scope | {"headers": raw, "client": (client, 4000), "server": ("127.0.0.1", 8443)})


@pytest.mark.parametrize("host", ["127.0.0.1:8443", "localhost:8443", "[::1]:8443"])
def test_a_program_of_the_user_who_runs_the_system_is_believed(host):
    assert is_own(asked(host=host), lambda request: os.geteuid())


@pytest.mark.parametrize(
    "request_",
    [
        asked(client="192.0.2.1"),
        asked(host="evil.example:8443"),
        asked(origin="https://evil.example"),
        asked(sec_fetch_site="cross-site"),
        asked(x_forwarded_for="192.0.2.1"),
    ],
)
def test_nobody_from_elsewhere_and_no_page_in_a_browser_is(request_):
    assert not is_own(request_, lambda request: os.geteuid())


@pytest.mark.parametrize("host", ["evil.example:8443", "127.0.0.1.evil.example", "localhost.evil.example"])
def test_a_foreign_name_that_leads_here_reads_no_page_of_an_operators(host):
    assert not is_local(asked(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1:8443", "LOCALHOST", os.uname().nodename])
def test_the_machines_own_names_do(host):
    assert is_local(asked(host=host))


def test_another_user_of_the_machine_is_not():
    assert not is_own(asked(), lambda request: os.geteuid() + 1)
    assert not is_own(asked(), lambda request: None)
