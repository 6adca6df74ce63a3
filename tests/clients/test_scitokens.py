"""Tokens made by the SciTokens library (PyPI: scitokens) open our endpoint like any issuer's."""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import RSAKey

pytestmark = pytest.mark.client


@pytest.fixture
def site(start, tmp_path):
    """Ours, trusting an issuer that publishes its keys by https; ``make(**claims)`` signs with its key."""
    scitokens = pytest.importorskip("scitokens", reason="scitokens is not installed (PyPI: scitokens)")
    from doma.net import tls

    private = rsa.generate_private_key(65537, 2048)
    files = tls.ensure(tmp_path / "issuer")
    documents: dict[str, object] = {}

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self):
            found = documents.get(self.path)
            body = json.dumps(found).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    issuer = f"https://127.0.0.1:{server.server_address[1]}"
    public = RSAKey.import_key(private.public_key()).as_dict(private=False)
    documents["/.well-known/openid-configuration"] = {"issuer": issuer, "jwks_uri": issuer + "/keys"}
    documents["/keys"] = {"keys": [public | {"kid": "one", "use": "sig", "alg": "RS256"}]}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "doma.toml").write_text(
        f'[[auth.issuers]]\nissuer = "{issuer}"\nvo = "osg"\nprofile = "scitokens"\nca_file = "{files.ca}"\n'
        'prefixes = ["/osg"]\n'
    )
    system = start("home", "--config", tmp_path / "doma.toml")

    def make(**claims: str) -> str:
        token = scitokens.SciToken(key=private, key_id="one", algorithm="RS256")
        for name, value in ({"ver": "scitoken:2.0", "aud": "ANY", "sub": "ada"} | claims).items():
            token[name] = value
        signed: bytes = token.serialize(issuer=issuer, lifetime=600)
        return signed.decode()

    yield system, make
    server.shutdown()
    server.server_close()


def test_read_and_write_scopes_open_their_paths_and_nothing_else(site):
    system, make = site
    writer = make(scope="write:/me read:/me")
    assert system.ask("PUT", "/site/osg/me/a", writer, content=b"abc").status_code == 201
    assert system.ask("GET", "/site/osg/me/a", make(scope="read:/")).content == b"abc"
    assert system.ask("PUT", "/site/osg/you/a", writer, content=b"abc").status_code == 403
    assert system.ask("GET", "/site/osg/me/a", make(scope="read:/mean")).status_code == 403
    assert system.ask("GET", "/site/elsewhere", make(scope="read:/")).status_code == 403
    assert system.ask("DELETE", "/site/osg/me/a", make(scope="read:/")).status_code == 403
    assert system.ask("DELETE", "/site/osg/me/a", writer).status_code == 204


def test_what_the_library_signs_for_others_is_refused(site):
    system, make = site
    assert (
        system.ask("GET", "/site/osg/a", make(scope="read:/", aud="https://other.example")).status_code == 401
    )
    assert system.ask("GET", "/site/osg/a", make(scope="read:/", ver="scitoken:9.0")).status_code == 401
