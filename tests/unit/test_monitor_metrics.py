import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from doma.monitor.counted import counted
from doma.monitor.metrics import BOUNDS, Metrics


def samples(metrics):
    text = metrics.render()[0].decode()
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_requests_are_counted_by_door_endpoint_method_and_status():
    metrics = Metrics(process=False)
    metrics.request("https", "site", "GET", 206, 0.002, 0, 65536)
    metrics.request("https", "site", "GET", 206, 0.004, 0, 65536)
    metrics.request("https", "site", "GET", 404, 0.001)
    metrics.request("https", "", "BREW", 501, 0.001)
    found = samples(metrics)
    assert found["doma_requests_total", "206", "GET", "https", "site"] == 2
    assert found["doma_requests_total", "404", "GET", "https", "site"] == 1
    assert found["doma_requests_total", "", "501", "https", "other"] == 1
    assert found["doma_sent_bytes_total", "GET", "https", "site"] == 131072
    assert found["doma_request_seconds_count", "GET", "https", "site"] == 3
    assert found["doma_request_seconds_sum", "GET", "https", "site"] == pytest.approx(0.007)


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50))
def test_each_bucket_holds_what_is_not_above_its_bound(durations):
    metrics = Metrics(process=False)
    for seconds in durations:
        metrics.request("https", "site", "GET", 200, seconds)
    found = samples(metrics)
    for bound in BOUNDS:
        key = ("doma_request_seconds_bucket", *sorted(["https", "site", "GET", str(float(bound))]))
        assert found[key] == sum(d <= bound for d in durations)


def test_a_batch_counts_as_its_parts():
    one, many = Metrics(process=False), Metrics(process=False)
    one.request("https", "site", "GET", 206, 0.02, 0, 1000, count=10)
    for _ in range(10):
        many.request("https", "site", "GET", 206, 0.002, 0, 100)
    assert samples(one) == pytest.approx(samples(many))


def test_numbers_that_others_keep_are_asked_for_when_read():
    metrics, used = Metrics(process=False), {"n": 1}
    metrics.watch("doma_cache_used_bytes", "Bytes on disk.", lambda: used["n"])
    metrics.watch(
        "doma_cache_hit_bytes_total",
        "Bytes.",
        lambda: {("a",): 5, ('b"\n',): 6},
        kind="counter",
        labels=["origin"],
    )
    assert samples(metrics)["doma_cache_used_bytes",] == 1
    used["n"] = 2
    found = samples(metrics)
    assert found["doma_cache_used_bytes",] == 2
    assert found["doma_cache_hit_bytes_total", "a"] == 5
    assert found["doma_cache_hit_bytes_total", 'b"\n'] == 6
    with pytest.raises(ValueError, match="doma_cache_used_bytes"):
        metrics.watch("doma_cache_used_bytes", "again", lambda: 0)


def test_two_apps_share_no_numbers_and_tell_their_process():
    one, two = Metrics(), Metrics()
    one.request("https", "site", "GET", 200, 0.1)
    assert not any(key[0] == "doma_requests_total" for key in samples(two))
    assert samples(two)["process_resident_memory_bytes",] > 0
    assert one.render("application/openmetrics-text; version=1.0.0")[1].startswith(
        "application/openmetrics-text"
    )


async def test_an_application_is_counted_also_when_it_fails():
    async def app(scope, receive, send):
        await receive()
        if scope["path"] == "/made/up":
            raise KeyError("x")
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"12345"})

    async def receive():
        return {"type": "http.request", "body": b"abc"}

    async def send(message):
        pass

    metrics = Metrics(process=False)
    whole = counted(app, metrics, endpoints={"site"}, clock=iter(range(10)).__next__)
    await whole({"type": "http", "method": "PUT", "path": "/site/x"}, receive, send)
    with pytest.raises(KeyError):
        await whole({"type": "http", "method": "GET", "path": "/made/up"}, receive, send)
    found = samples(metrics)
    assert found["doma_requests_total", "201", "PUT", "https", "site"] == 1
    assert found["doma_requests_total", "", "499", "GET", "https"] == 1
    assert found["doma_received_bytes_total", "PUT", "https", "site"] == 3
    assert found["doma_sent_bytes_total", "PUT", "https", "site"] == 5
    assert found["doma_request_seconds_sum", "PUT", "https", "site"] == 1
