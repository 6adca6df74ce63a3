"""ServiceX's own client asking for what it may not have, and what it makes of our answers."""

import pytest

from tests.clients.servicex_session import User, refresh_token, result
from tests.clients.test_servicex import asked, begun
from tests.clients.test_servicex import slow as slow

pytest.importorskip("servicex", reason="the package is: servicex")
pytestmark = pytest.mark.client

CALLS = """
import asyncio
from servicex.servicex_client import ServiceXClient
adapter = ServiceXClient(config_path=config).servicex
async def say(call):
    try:
        found = await call
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return str(getattr(found, "status", found))
async def main():
    calls = {
        "status": adapter.get_transform_status, "results": adapter.get_transformation_results,
        "cancel": adapter.cancel_transform, "delete": adapter.delete_transform,
    }
    said = {}
    for step in arguments["steps"]:
        said[step] = await say(calls[step](arguments["id"]))
    said["listed"] = str(arguments["id"] in [t.request_id for t in await adapter.get_transforms()])
    print("\\nRESULT " + json.dumps(said))
asyncio.run(main())
"""


def test_each_refusal_of_a_request_reaches_the_client_as_its_own_error(slow):
    mallory = User(
        slow.folder.parent / "mallory", slow.system, refresh_token(slow.system, "--subject", "mallory")
    )
    process = begun(slow, 60.0, ["one"])
    (one,) = asked(slow)
    id_ = one["request_id"]
    every = ["status", "results", "cancel", "delete"]

    # somebody else learns nothing, not even that it exists, and stops nothing
    stranger, nobody = (mallory.python(CALLS, id=which, steps=every) for which in (id_, "0" * 8 + id_[8:]))
    for said in (stranger, nobody):
        assert said.pop("listed") == "False"
        assert {text.partition(": ")[0] for text in said.values()} == {"ValueError"}
        assert all("not found" in text for text in said.values())
    assert [r["status"] for r in asked(slow)] == ["Running"]

    # its owner removes it only after it has ended, and is told so
    running = slow.python(CALLS, id=id_, steps=["delete", "status", "cancel"])
    assert running["delete"].startswith("RuntimeError: Failed to delete")
    assert "cancel it first" in running["delete"]
    assert running["status"] == "Status.running"
    assert running["cancel"] == "None"
    assert "canceled" in result(process)["z"]

    ended = slow.python(CALLS, id=id_, steps=["status", "cancel", "delete"])
    assert ended["status"] == "Status.canceled"
    assert ended["cancel"].startswith("RuntimeError: Failed to cancel")
    assert "Canceled already" in ended["cancel"]
    assert (ended["delete"], ended["listed"]) == ("None", "False")

    # and then it is gone: for him, too
    gone = slow.python(CALLS, id=id_, steps=every)
    assert gone.pop("listed") == "False"
    assert {text.partition(": ")[0] for text in gone.values()} == {"ValueError"}
