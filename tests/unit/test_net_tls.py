"""Certificates of a home: made once, renewed when needed, private."""

import datetime as dt
import ipaddress
import ssl

import pytest
from cryptography import x509

from doma.core.errors import ConfigError
from doma.net import tls

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def names_of(path):
    leaf = x509.load_pem_x509_certificate(path.read_bytes())
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def test_a_ca_signs_a_leaf_for_this_host_and_its_names(tmp_path):
    files = tls.ensure(tmp_path / "tls", ["se.example.org", "192.0.2.7", ""], now=NOW)
    assert names_of(files.certificate) == {"localhost", "127.0.0.1", "::1", "se.example.org", "192.0.2.7"}
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    leaf.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("192.0.2.7") in found.get_values_for_type(x509.IPAddress)


def test_keys_are_private(tmp_path):
    files = tls.ensure(tmp_path, now=NOW)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("ca.key", "server.key")] == [0o600, 0o600]
    assert files.key == tmp_path / "server.key"


def test_nothing_changes_while_it_fits(tmp_path):
    tls.ensure(tmp_path, ["a.example"], now=NOW)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    tls.ensure(tmp_path, ["a.example"], now=NOW + dt.timedelta(days=300))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("names", "later"), [(["b.example"], 0), (["a.example"], 380), (["a.example"], 500), (["a.example"], -9)]
)
def test_the_leaf_is_replaced_when_names_or_life_do_not_fit_and_the_ca_stays(tmp_path, names, later):
    files = tls.ensure(tmp_path, ["a.example"], now=NOW)
    ca, leaf = files.ca.read_bytes(), files.certificate.read_bytes()
    tls.ensure(tmp_path, names, now=NOW + dt.timedelta(days=later))
    assert files.ca.read_bytes() == ca
    assert files.certificate.read_bytes() != leaf
    assert set(names) <= names_of(files.certificate)


def test_contexts_are_made_of_the_files(tmp_path):
    files = tls.ensure(tmp_path)
    context = tls.server_context(files.certificate, files.key)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls.client_context(files.ca).verify_mode == ssl.CERT_REQUIRED


def test_damaged_files_are_named_with_the_remedy(tmp_path):
    (tmp_path / "ca.pem").write_text("nonsense")
    (tmp_path / "ca.key").write_text("nonsense")
    with pytest.raises(ConfigError, match="remove the files"):
        tls.ensure(tmp_path)
    with pytest.raises(ConfigError, match=r"listen\.certificate"):
        tls.server_context(tmp_path / "ca.pem", tmp_path / "ca.key")
    with pytest.raises(ConfigError, match="not a CA file"):
        tls.client_context(tmp_path / "ca.pem")
