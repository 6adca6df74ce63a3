"""A system that listens on every address, as other machines see it: by no means is anybody there at home."""

import http.client
import socket
import ssl

import pytest

from tests.conftest import System


def own_address():
    """An address of this machine that is not loopback; None: it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # sends nothing
        except OSError:
            return None
        found = probe.getsockname()[0]
    return None if found.startswith("127.") else found


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def outside(request, tmp_path_factory):
    """Asks a whole system from outside, with the host name and headers that are given."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address besides loopback")
    home = tmp_path_factory.mktemp("outside") / "home"
    home.mkdir()
    (home / "doma.toml").write_text(f"[listen]\nworkers = {request.param}\n")
    system = System(home, "--listen", "0.0.0.0:0")
    port = int(system.up()["https"].rpartition(":")[2])
    context = ssl.create_default_context(cafile=system.run["ca_file"])
    context.check_hostname = False  # as an attacker, who asks by whatever name he likes

    def ask(method, path, headers, *, tls=True):
        kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
        connection = kind(address, port, timeout=30, **({"context": context} if tls else {}))
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()

    yield system, ask
    assert system.down() == 0


NAMES = ("localhost", "127.0.0.1", "[::1]", "evil.example")
HERE: tuple[dict[str, str], ...] = (
    {},
    {"X-Forwarded-For": "127.0.0.1"},
    {"Forwarded": "for=127.0.0.1"},
    {"X-Real-IP": "127.0.0.1"},
    {"x-doma-worker": "x", "x-doma-where": '{"client": ["127.0.0.1", 1]}'},
)


def test_nobody_from_outside_is_taken_for_a_user_of_the_machine(outside):
    _, ask = outside
    for path in ("/", "/metrics", "/events", "/events/page", "/requests", "/servicex", "/site/", "/results/"):
        for headers in [{"Host": name, **more} for name in NAMES for more in HERE]:
            status, _, text = ask("GET", path, headers)
            assert status == 401, (path, headers, text)
    for method, path in (("POST", "/token/refresh"), ("PUT", "/site/x"), ("DELETE", "/site/x")):
        assert ask(method, path, {"Host": "localhost", "Content-Length": "0"})[0] == 401


def test_without_tls_nothing_is_said_from_outside(outside):
    _, ask = outside
    for path in ("/", "/health", "/doma/jwks", "/site/"):
        assert ask("GET", path, {"Host": "localhost"}, tls=False)[0] == 403


def test_a_host_that_the_request_names_is_in_no_answer(outside):
    system, ask = outside
    seen = set()
    evil = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    paths = (
        "/events/", "/requests/", "/health/", "/metrics/", "/doma", "/doma/device/", "/doma/jwks/", "/site",
        "/doma/device", "/doma/.well-known/openid-configuration", "/.well-known/oauth-authorization-server",
        "/.well-known/wlcg-tape-rest-api", "/api/v1/s3/keys/", "/servicex/", "/health",
    )  # fmt: skip
    for path in paths:
        status, headers, text = ask("GET", path, evil)
        seen.add(status)
        assert "evil" not in text + str(headers), path
    assert 200 in seen
    admin = {"Authorization": f"Bearer {system.admin()}"}
    for path in ("/requests", "/servicex/transformation", "/site/"):
        status, headers, text = ask("GET", path, evil | admin)
        assert status in {200, 207}
        assert "evil" not in text + str(headers), path


def test_it_says_that_it_is_known_by_a_name_of_its_own_only(outside):
    system, _ = outside
    assert "set listen.name" in " ".join(system.log.split())
    for audience in ("0.0.0.0", f"https://0.0.0.0:{system.run['https'].rpartition(':')[2]}"):
        refused = system.ask("GET", "/site/", system.token(audience=(audience,)))
        assert refused.status_code == 401
