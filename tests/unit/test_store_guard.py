"""Where a redirect of a store or a catalogue may lead, by the address at its end."""

import pytest

from doma.store.http_trust import AddressGuard

PUBLIC, SITE, HERE = "192.88.99.7", "10.1.2.3", "127.0.0.1"  # a public one, of the site, of this machine
ALL = {
    "8.8.8.8": (True, True, True),
    "2606:4700::1111": (True, True, True),
    "10.9.9.9": (False, True, True),
    "fd12::7": (False, True, True),
    "127.0.0.1": (False, False, True),
    "127.8.8.8": (False, False, True),
    "::1": (False, False, True),
    "::ffff:127.0.0.1": (False, False, True),
    "64:ff9b::7f00:1": (False, False, True),  # NAT64 of loopback
    "64:ff9b::a09:909": (False, True, True),
    "2002:7f00:1::": (False, False, True),  # 6to4 of it
    "0.0.0.0": (False, False, False),
    "::": (False, False, False),
    "169.254.169.254": (False, False, False),
    "fe80::1%eth0": (False, False, False),
    "fd00:ec2::254": (False, False, False),
    "100.100.100.200": (False, False, False),
    "168.63.129.16": (False, False, False),
    "224.0.0.1": (False, False, False),
}


@pytest.mark.parametrize("address", ALL)
def test_a_redirect_leads_no_deeper_than_its_server_lies(address):
    for own, may in zip((PUBLIC, SITE, HERE), ALL[address], strict=True):
        guard = AddressGuard("se.example.org", None)
        assert guard("se.example.org", own)
        assert guard("elsewhere.example.org", address) is may, own


def test_a_redirect_before_the_server_was_reached_leads_to_public_addresses_only():
    guard = AddressGuard("se.example.org", None)
    assert not guard("elsewhere.example.org", SITE)
    assert not guard("elsewhere.example.org", HERE)
    assert guard("elsewhere.example.org", "8.8.8.8")
