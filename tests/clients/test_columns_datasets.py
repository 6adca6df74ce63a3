"""ServiceX's own client (PyPI: servicex) lists, shows and deletes datasets."""

import importlib.util

import numpy as np
import pytest
import uproot

pytestmark = pytest.mark.client

COUNT = "(call Count (call EventDataset 'x' 'Events'))"


async def test_the_clients_dataset_calls_work(shared, tmp_path, monkeypatch):
    if importlib.util.find_spec("servicex") is None:
        pytest.skip("ServiceX's client is not installed (PyPI: servicex)")
    from servicex.servicex_adapter import ServiceXAdapter  # type: ignore[import-untyped]

    with uproot.recreate(tmp_path / "f.root") as file:
        file.mktree("Events", {"x": np.int64}).extend({"x": np.arange(10)})
    shared.put("/site/clients/f.root", (tmp_path / "f.root").read_bytes())
    files = [{"replicas": [f"{shared.run['https']}/site/clients/f.root"], "bytes": 7, "events": 10}]
    assert shared.ask("PUT", "/api/v1/datasets/clients", json={"files": files}).status_code == 200
    body = {"did": "doma://clients", "selection": COUNT, "codegen": "uproot"}
    assert shared.ask("POST", "/servicex/transformation", json=body).status_code == 200
    (tmp_path / "token").write_text(shared.token(lifetime=3600))
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "token"))
    client = ServiceXAdapter(shared.run["url"])
    listed = {d.name: d for d in await client.get_datasets(did_finder="doma")}
    one = await client.get_dataset(listed["doma://clients"].id)
    assert one.did_finder == "doma"
    assert await client.delete_dataset(one.id)
    assert one.id not in [d.id for d in await client.get_datasets()]
    assert [d.is_stale for d in await client.get_datasets(show_deleted=True) if d.id == one.id] == [True]
    with pytest.raises(ValueError, match="not found"):
        await client.get_dataset(999_999)
