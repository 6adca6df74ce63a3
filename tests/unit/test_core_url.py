import pytest

from doma.core.errors import BadRequest
from doma.core.url import https, joined, origin_of, redacted


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.org/x", "davs://A.ORG:443/y", True),
        ("http://a.org", "dav://a.org:80/", True),
        ("https://a.org", "https://a.org:8443", False),
        ("https://a.org", "http://a.org:443", False),
        ("https://a.org", "https://a.org.evil.net", False),
        ("root://a.org//f", "root://a.org:1094//g", True),
        ("https://[::1]:5/x", "https://[::1]:5", True),
    ],
)
def test_origins_are_compared_by_scheme_host_and_port(one, other, same):
    assert (origin_of(one) == origin_of(other)) is same


@pytest.mark.parametrize(
    "url",
    ["", "/a", "a.org/x", "file:///etc/passwd", "https://", "https://a.org:99999/", "https://a.org:x/",
     "https://me:hush@a.org/", "https://[::1/x", "gopher://a.org/", "https:// a/"],
)  # fmt: skip
def test_what_leads_nowhere_we_know_is_refused_without_telling_secrets(url):
    with pytest.raises(BadRequest) as caught:
        origin_of(url)
    assert "hush" not in caught.value.message


def test_an_origin_is_written_without_its_default_port():
    assert str(origin_of("davs://a.org:443/x")) == "https://a.org"
    assert str(origin_of("https://[2001:db8::1]:8443")) == "https://[2001:db8::1]:8443"


def test_only_the_spellings_of_http_are_rewritten():
    assert [https(u) for u in ("DAVS://a/b", "dav://a", "s3s://b/k", "root://a", "plain")] == [
        "https://a/b", "http://a", "https://b/k", "root://a", "plain",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hush@a.org/f",
        "https://a.org/f?authz=Bearer%20hush",
        "https://a.org/f?x=1&ACCESS_TOKEN=hush&y=2",
        "https://b.s3/f?X-Amz-Signature=hush&X-Amz-Date=1",
        "postgresql+psycopg://me:hush@db/x",
    ],
)
def test_no_secret_of_a_url_is_shown(url):
    assert "hush" not in redacted(url)


def test_a_harmless_url_is_shown_as_it_is():
    for url in ("https://a.org/a%20b?x=1&y=%2F", "https://a.org", "nonsense", "https://a.org/user@host"):
        assert redacted(url) == url


def test_a_base_keeps_its_query():
    assert joined("https://a.org/se/", "/f") == "https://a.org/se/f"
    assert joined("https://a.org", "/f") == "https://a.org/f"
