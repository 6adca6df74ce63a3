"""Certificates of a server: given ones, or a CA of its own that signs a leaf.

The CA signs a separate leaf, since strict clients (rustls) refuse a CA that is used as server certificate.

Source: RFC 5280; dataplane.md §3.2 of the project's contracts.
"""

import datetime as dt
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from doma.core.errors import ConfigError

CA_LIFE = dt.timedelta(days=3650)
LEAF_LIFE = dt.timedelta(days=397)
RENEW = dt.timedelta(days=30)
"""A leaf with less life than this is replaced at start."""

LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Files:
    """Where the PEM files of a server are."""

    ca: Path
    certificate: Path
    key: Path


def ensure(folder: Path, names: Sequence[str] = (), *, now: dt.datetime | None = None) -> Files:
    """A CA and a leaf for this host in a folder, made or renewed where needed; keys have mode 0600.

    Args:
        folder: Holds ``ca.pem``, ``ca.key``, ``server.pem``, ``server.key``.
        names: Host names and addresses besides :data:`LOCAL`.
        now: For tests.

    Raises:
        ConfigError: the folder cannot be written or holds unreadable files.
    """
    moment = now or dt.datetime.now(dt.UTC)
    wanted = tuple(dict.fromkeys([*LOCAL, *(name for name in names if name)]))
    files = Files(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ca, ca_key = _authority(folder, moment)
        if not _serves(files, ca, wanted, moment):
            _issue(files, ca, ca_key, wanted, moment)
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{folder}: no certificate can be kept here: {e}; remove the files or fix the rights"
        ) from e
    return files


def server_context(certificate: Path | str, key: Path | str) -> ssl.SSLContext:
    """The TLS context of the listener: TLS 1.2 or newer, HTTP/1.1.

    Raises:
        ConfigError: the files do not fit together or cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Two tickets a handshake are bytes that nobody asked for; one resumes as well.
    context.num_tickets = 1
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(
            f"{certificate}, {key}: not a certificate with its key: {e}; check listen.certificate"
        ) from e
    return context


def client_context(ca_file: Path | str | None = None) -> ssl.SSLContext:
    """A context that trusts one CA file, or the system's when none is named.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"{ca_file}: not a CA file: {e}") from e


def _authority(folder: Path, now: dt.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    ca_file, key_file = folder / "ca.pem", folder / "ca.key"
    if ca_file.exists() and key_file.exists():
        ca = x509.load_pem_x509_certificate(ca_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and ca.not_valid_after_utc > now + LEAF_LIFE:
            return ca, key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "DOMA"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"DOMA home CA {x509.random_serial_number():x}"[:40]),
        ]
    )
    ca = (
        _builder(name, name, key, now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(key_file, _pem(key), 0o600)
    _write(ca_file, ca.public_bytes(serialization.Encoding.PEM), 0o644)
    return ca, key


def _serves(files: Files, ca: x509.Certificate, names: Sequence[str], now: dt.datetime) -> bool:
    """Whether the leaf there is ours, has these names and lives long enough."""
    if not (files.certificate.exists() and files.key.exists()):
        return False
    leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    if leaf.issuer != ca.subject or not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc - RENEW:
        return False
    held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(held) == {_general(name) for name in names}


def _issue(
    files: Files,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    now: dt.datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[-1][:64])])
    leaf = (
        _builder(subject, ca.subject, key, now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write(files.key, _pem(key), 0o600)
    _write(files.certificate, leaf.public_bytes(serialization.Encoding.PEM), 0o644)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
    life: dt.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file in one step; nobody else can read a key at any moment."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        os.fchmod(handle, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:  # a cancellation, too: undone, and raised on
        Path(name).unlink(missing_ok=True)
        raise
