"""What a large request or answer costs is paid in a thread: meanwhile the loop serves everybody else."""

import json
import threading

import pytest
from pydantic import BaseModel, field_validator
from starlette.requests import Request

from doma.columns import dataset_routes, service
from doma.columns.model import FileResult, FileState
from doma.columns.routes import LARGE, body_of, written


class Where:
    """Notes in which threads it was asked."""

    def __init__(self):
        self.threads = set()

    def __call__(self, *_):
        self.threads.add(threading.current_thread())
        return "token"

    def __contains__(self, item):
        self()
        return True

    @property
    def beside(self):
        return self.threads and threading.current_thread() not in self.threads


where = Where()


class Noted(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def note(cls, value):
        where()
        return value


def asked(body):
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "PUT", "path": "/x", "headers": []}, receive)


async def test_a_large_body_is_read_in_a_thread_and_a_small_one_at_once():
    for size, beside in ((10, False), (LARGE, True)):
        where.threads.clear()
        assert (await body_of(asked(json.dumps({"text": "x" * size}).encode()), Noted)).text == "x" * size
        assert bool(where.beside) is beside


async def test_an_answer_of_any_length_is_written_in_a_thread():
    where.threads.clear()
    assert (await written(lambda: {"text": where()})).body == b'{"text":"token"}'
    assert where.beside


async def test_the_files_of_a_dataset_are_judged_in_a_thread():
    class Catalogue:
        async def change(self, work):
            raise KeyError

    allow = Where()

    async def caller(request):
        raise AssertionError

    routes = dataset_routes.router(Catalogue(), caller, allow).routes
    put = next(r.endpoint for r in routes if "PUT" in r.methods)
    body = json.dumps({"files": [{"replicas": ["file:///x"]}]}).encode()
    with pytest.raises(KeyError):
        await put("eve/z", asked(body), None)
    assert allow.beside


async def test_addresses_of_results_are_signed_in_a_thread():
    done = FileResult(1, "id", 1, "https://h/a", FileState.DONE, None, "r", 1, 1, 1.0, 1, 1)
    sign = Where()
    own = object.__new__(service.ColumnService)
    own._results_url, own._sign, own._clock, own._url_life = "https://h/results", sign, lambda: 0.0, 60.0

    async def results(owner, id_, later_than=-1):
        return [done]

    own.results = results
    urls = await own.urls("i#eve", "id", None)
    assert urls["r"].url == "https://h/results/id/r?authz=token"
    assert sign.beside
