"""func_adl over the column service: write a query, call ``value()``, get an awkward array.

Example:
    two = Delivered(access, [url], "Events").Where(lambda e: e.nMuon >= 2)
    pt = two.Select(lambda e: {"pt": e.Muon_pt}).value()
"""

import ast
from collections.abc import Sequence
from typing import Any

import awkward as ak
import func_adl
import httpx
import qastle

from doma.columns.client import ColumnClient
from doma.facility.access import Access


class Delivered(func_adl.EventDataset):  # type: ignore[misc] # func_adl publishes no types
    """Files as a func_adl source whose queries run at the column service of a system.

    Args:
        access: The running system.
        files: URLs of the inputs.
        tree: TTree or RNTuple to read; empty: the file's only one.
    """

    def __init__(self, access: Access, files: Sequence[str], tree: str = "") -> None:
        super().__init__()
        if tree:
            self._q_ast.args = [ast.Constant("files"), ast.Constant(tree)]
        self._access, self._files = access, list(files)
        self.received = 0
        """Body bytes of results received so far."""
        self.read = 0
        """Bytes that the service read from the inputs so far."""

    async def execute_result_async(self, a: ast.AST, title: str | None = None) -> Any:
        """Run a query (func_adl calls this); the result as one awkward array."""
        selection = qastle.python_ast_to_text_ast(qastle.insert_linq_nodes(a))
        headers = {"Authorization": f"Bearer {self._access.token()}"}
        service = self._access.services["servicex"]
        tls = self._access.tls()
        async with (
            httpx.AsyncClient(base_url=service, headers=headers, verify=tls) as http,
            # result addresses carry their own credential
            httpx.AsyncClient(verify=tls, timeout=300) as plain,
        ):
            client = ColumnClient(http, plain)
            table = await client.columns(selection, self._files)
        self.received += client.received
        self.read += client.read_bytes
        return ak.from_arrow(table)
