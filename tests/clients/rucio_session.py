"""What Rucio's clients and daemons ask of one RSE, without a Rucio server: a program of ``test_rucio.py``.

Reads ``{"url", "token", "folder", "impl", "scheme", "names"}`` from its input, uses Rucio's own RSE layer
with the settings that the server would send, and prints what every step gave. Runs apart because gfal2 is a
Debian package of the system's Python and Rucio reads its configuration when it is imported.
"""

import hashlib
import json
import os
import sys
import warnings
import zlib
from pathlib import Path
from urllib.parse import urlsplit

warnings.simplefilter("ignore")  # Rucio's webdav does not verify certificates, and urllib3 says so every time
sys.path.append("/usr/lib/python3/dist-packages")


def settings(url, impl, scheme):
    """An RSE as ``GET /rses/<name>`` of a Rucio server describes it."""
    place = urlsplit(url)
    once = dict.fromkeys(("read", "write", "delete", "third_party_copy_read", "third_party_copy_write"), 1)
    protocol = {
        "scheme": scheme, "hostname": place.hostname, "port": place.port, "prefix": place.path + "/",
        "impl": impl, "extended_attributes": None, "domains": {"lan": dict(once), "wan": dict(once)},
    }  # fmt: skip
    return {
        "id": "0", "rse": "DOMA", "rse_type": "DISK", "volatile": False, "verify_checksum": True,
        "deterministic": True, "domain": ["lan", "wan"], "sign_url": None, "lfn2pfn_algorithm": "hash",
        "availability_read": True, "availability_write": True, "availability_delete": True,
        "credentials": None, "qos_class": None, "staging_area": False, "protocols": [protocol],
    }  # fmt: skip


class Session:
    """Asks, and keeps each answer or the name of the exception."""

    def __init__(self):
        self.said = {}

    def step(self, name, call):
        try:
            self.said[name] = call()
        except Exception as e:  # noqa: BLE001 - the test looks at whatever it is
            self.said[name] = f"{type(e).__name__}: {e}"


def lfn(name):
    return {"scope": "user.ada", "name": name}


def main():
    job = json.load(sys.stdin)
    folder = Path(job["folder"])
    (folder / "rucio.cfg").write_text("[client]\nauth_type = oidc\naccount = ada\n")
    os.environ |= {"RUCIO_CONFIG": str(folder / "rucio.cfg"), "RUCIO_CLIENT_MODE": "1"}
    from rucio.rse import rsemanager

    rse, token = settings(job["url"], job["impl"], job["scheme"]), job["token"]
    session, names = Session(), job["names"]
    files = []
    for name in names:
        data = (folder / name).read_bytes()
        sums = {"adler32": f"{zlib.adler32(data):08x}", "md5": hashlib.md5(data).hexdigest()}
        files.append(lfn(name) | sums | {"filesize": len(data)})
    options = {"source_dir": str(folder), "auth_token": token}
    wrong = lfn("wrong") | {"adler32": "00000bad", "filesize": files[0]["filesize"] + 1, "filename": names[0]}

    session.step("upload", lambda: rsemanager.upload(rse, files, **options)["success"])
    session.step("upload again", lambda: rsemanager.upload(rse, files[:1], **options)["success"])
    session.step("upload of something else", lambda: rsemanager.upload(rse, wrong, **options)["success"])
    every = [lfn(name) for name in (*names, "missing", "wrong")]
    session.step("exists", lambda: rsemanager.exists(rse, every, auth_token=token)[1])
    protocol = rsemanager.create_protocol(rse, "read", auth_token=token)
    protocol.connect()
    pfn = next(iter(protocol.lfns2pfns(lfn(names[0])).values()))
    session.step("stat", lambda: protocol.stat(pfn))
    session.step("get", lambda: protocol.get(pfn, str(folder / "back")))
    session.step("get what is missing", lambda: protocol.get(pfn + "x", str(folder / "nothing")))
    session.step("space", lambda: [int(part) for part in protocol.get_space_usage()])
    renamed = {**lfn(names[0]), "new_scope": "user.ada", "new_name": "renamed"}
    session.step("rename", lambda: rsemanager.rename(rse, [renamed], auth_token=token))
    gone = [lfn(name) for name in ("renamed", *names[1:], "missing")]
    deleted = rsemanager.delete(rse, gone, auth_token=token)
    session.said["delete"] = {key: value is True for key, value in deleted[1].items()}
    session.step("exists after", lambda: rsemanager.exists(rse, every, auth_token=token)[1])
    poor = rsemanager.create_protocol(rse, "read", auth_token="not.a.token")
    session.step("without a right", lambda: (poor.connect(), poor.get(pfn, str(folder / "nothing"))))
    print("SAID " + json.dumps(session.said))


if __name__ == "__main__":
    main()
