"""Pre-signed URLs, of our door and of another S3 service, as source and destination of third-party copies."""

import os
import time
import uuid

import httpx
import pytest

from doma.store.s3_signature import Credentials, presigned


@pytest.fixture(scope="module")
def copier(tmp_path_factory, shared):
    """A second system, which may speak to the first and to services on this machine."""
    base = tmp_path_factory.mktemp("copier")
    (base / "doma.toml").write_text(
        f'[tpc]\nallow = ["loopback"]\nplain_http = true\nca_file = "{shared.run["ca_file"]}"\n'
    )
    system = type(shared)(
        base / "home", "--config", base / "doma.toml", "--role", "storage", "--role", "issuer"
    )
    system.up()
    yield system
    assert system.down() == 0, system.log


def copy(system, path, **headers):
    """The last line of the answer to a COPY."""
    answer = system.ask("COPY", path, headers=headers)
    return (
        answer.text.splitlines()[-1] if answer.status_code == 202 else f"{answer.status_code} {answer.text}"
    )


@pytest.mark.parametrize("scheme", ["https", "url"])
def test_a_url_that_our_door_accepts_is_pulled_from_and_pushed_to(copier, shared, key, s3, scheme):
    top, data = f"s3t/{uuid.uuid4().hex}", os.urandom(3_000_000)
    s3.put_object(Bucket="site", Key=f"{top}/a b.root", Body=data)
    pair = key("/" + top)
    who = Credentials(pair.access, pair.secret, pair.token)

    def url(method, name):
        return presigned(method, f"{shared.run[scheme]}/site/{top}/{name}", who, now=time.time(), life=600)

    assert copy(copier, f"/site/{top}/pulled", Source=url("GET", "a%20b.root")) == "success: Created"
    assert copier.ask("GET", f"/site/{top}/pulled").content == data
    assert copy(copier, f"/site/{top}/pulled", Destination=url("PUT", "pushed")).startswith("success:")
    assert s3.get_object(Bucket="site", Key=f"{top}/pushed")["Body"].read() == data
    wrong = copy(copier, f"/site/{top}/other", Source=url("PUT", "a%20b.root"))
    assert "403" in wrong
    assert "Signature=" not in wrong
    assert copier.ask("HEAD", f"/site/{top}/other").status_code == 404


def test_a_url_of_another_service_is_pulled_from(copier, s3_server):
    name, data = uuid.uuid4().hex, os.urandom(500_000)
    who = Credentials("any", "keys")
    assert httpx.put(f"{s3_server}/doma-test/{name}", content=data).status_code == 200

    url = presigned("GET", f"{s3_server}/doma-test/{name}", who, now=time.time(), life=600)
    # moto gives no checksum that stands for the content: say that none is needed
    how = {"RequireChecksumVerification": "false"}
    assert copy(copier, f"/site/{name}", Source=url, **how) == "success: Created"
    assert copier.ask("GET", f"/site/{name}").content == data
