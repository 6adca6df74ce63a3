"""Where a system listens: what is asked for, what a home keeps, what makes no sense."""

import socket
from pathlib import Path

import pytest

from doma.app.address import PORTS, placed
from doma.app.home import Home
from doma.core.config import Listen
from doma.core.errors import ConfigError, PortInUse


def port_of(listen: Listen) -> int:
    return int(listen.address.rpartition(":")[2])


def test_a_new_home_gets_a_free_port_and_keeps_it(tmp_path: Path):
    home = Home(tmp_path)
    found = port_of(placed(Listen(), home))
    assert found in PORTS
    (tmp_path / "port").write_text(f"{found}\n")
    assert port_of(placed(Listen(), home)) == found


def test_a_kept_port_that_is_taken_is_given_up_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        (tmp_path / "port").write_text(f"{taken}\n")
        assert port_of(placed(Listen(), Home(tmp_path))) != taken
    assert f"port {taken} of this home is taken" in caplog.text


def test_an_asked_port_that_is_taken_is_refused(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(PortInUse, match=address):
            placed(Listen(address=address), Home(tmp_path))
    assert placed(Listen(address=address), Home(tmp_path)).address == address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]"])
def test_every_way_to_write_a_host_keeps_it(tmp_path: Path, host: str):
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    assert placed(Listen(address=f"{host}:0"), Home(tmp_path)).address.startswith(f"{host}:")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "8443",
        "host",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1:٣",
        "a:" + "9" * 5000,
    ],
)
def test_what_is_no_address_is_refused(tmp_path: Path, address: str):
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        placed(Listen(address=address), Home(tmp_path))


@pytest.mark.parametrize(
    "address", ["192.0.2.1:0", "192.0.2.1:9000", "no-such-host.invalid:0", "x" * 300 + ":0"]
)
def test_an_address_of_another_machine_is_named(tmp_path: Path, address: str):
    with pytest.raises(ConfigError, match="cannot be used"):
        placed(Listen(address=address), Home(tmp_path))
