"""The two servers of the data-plane benchmark: ours, and nginx with Debian's ordinary settings.

Both run on one core. Ours has a file store, the file routes of the https door and one JSON route. nginx has
``sendfile`` and ``tcp_nopush`` on (as Debian's ``nginx.conf``), its default ``ssl_buffer_size`` of 16 KiB and
one worker; access logs are off, keep-alive is not limited, uploads go through ``dav_methods``.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

ISSUER, AUDIENCE = "https://issuer.example/doma", "https://localhost"
SERVER_CORE, CLIENT_CORE = 0, 1

NGINX = """
{user} worker_processes 1; daemon off; pid {run}/nginx.pid; error_log {run}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; keepalive_timeout 300;
  client_max_body_size 0; client_body_buffer_size 1m; default_type application/octet-stream; types {{ }}
  client_body_temp_path {run}/body; proxy_temp_path {run}/p; fastcgi_temp_path {run}/f;
  uwsgi_temp_path {run}/u; scgi_temp_path {run}/s;
  server {{
    listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; root {root};
    ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;
    large_client_header_buffers 4 64k;
    location / {{ dav_methods PUT DELETE; create_full_put_path on; }}
  }}
}}
"""


def serve(folder: str, ready: Any) -> None:
    """Our server in this process: a file store, the WebDAV routes it needs, one JSON route."""
    os.sched_setaffinity(0, {SERVER_CORE})
    import uvloop

    from doma.auth.gate import Gate
    from doma.auth.keys import KeySet
    from doma.auth.verifier import Verifier
    from doma.core.config import Issuer, Listen
    from doma.doors import files
    from doma.doors.endpoint import Endpoint, Site
    from doma.doors.fast import FastDoor
    from doma.net import tls
    from doma.net.listener import Listener
    from doma.store.file import FileStore

    async def main() -> None:
        keys = KeySet.load_or_make(Path(folder) / "keys")
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": "bench", "aud": AUDIENCE, "exp": now + 86400, "iat": now, "nbf": now - 60,
            "jti": "bench", "wlcg.ver": "1.0", "wlcg.groups": [f"/doma/group-{i:03d}" for i in range(30)],
            "scope": "storage.read:/ storage.modify:/",
        }  # fmt: skip
        verifier = Verifier([Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: keys.jwks()})
        store = FileStore(Path(folder) / "data", fsync=False)
        site = Site(verifier, {"site": Endpoint("site", store, Gate({ISSUER: ["/"]}))})
        of_file = files.app(site)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/json":
                await of_file(scope, receive, send)
                return
            head = [(b"content-type", b"application/json"), (b"content-length", b"15")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b'{"state": "up"}'})

        certificate = tls.ensure(Path(folder) / "tls")
        listener = Listener(
            app,
            fast=FastDoor(site),
            listen=Listen(max_connections=20_000, idle_timeout=600),
            tls=tls.server_context(certificate.certificate, certificate.key),
        )
        _, port = await listener.start()
        ready.send((port, keys.sign(claims, "ES256"), str(certificate.certificate), str(certificate.key)))
        await asyncio.Event().wait()

    uvloop.run(main())


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def nginx(folder: Path, certificate: str, key: str) -> tuple["subprocess.Popen[bytes]", int, int]:
    """Start nginx over the same data: its process, plain and TLS port."""
    plain, tls = free_ports(2)
    user = "user root;" if os.getuid() == 0 else ""  # its workers write where we do
    (folder / "nginx.conf").write_text(
        NGINX.format(
            user=user, run=folder, plain=plain, tls=tls, root=folder / "data", cert=certificate, key=key
        )
    )
    process = subprocess.Popen(
        [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)],
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        stderr=subprocess.DEVNULL,
    )
    return process, plain, tls
