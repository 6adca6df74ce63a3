"""The last frame of ours below a user's function: calls it and sends what it returns as Arrow batches.

All of this runs sealed, in one process with hostile code that may change any of it: whoever reads the other
end of the socket believes nothing. Frames: length, JSON; ``size`` says how many bytes follow a frame.
"""

import contextlib
import json
import os
import socket
import struct
import sys
import traceback
from typing import Any

BATCH = 16 << 20
"""Bytes that one batch takes, or so."""
ROWS = 1 << 18
TRACE = 16 << 10


def run(source: str, where: str, result: socket.socket) -> int:
    """Run the function on one file; the exit code."""
    try:
        code = compile(source, "<function>", "exec", dont_inherit=True)
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(code, space)  # noqa: S102 - this process exists for it and can do no harm
        _send(result, space["run_query"](where))
        _frame(result, {"done": True})
    except BaseException as e:  # noqa: BLE001 - whatever it is, it is the user's to read
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        text = "".join(traceback.format_exception(e))
        sys.stderr.write(text[-TRACE:])
        sys.stderr.flush()
        # A syntax error comes last; after others come their notes.
        last = traceback.format_exception_only(e)[-1 if isinstance(e, SyntaxError) else 0].strip()
        _frame(result, {"raised": last[:2000], "memory": isinstance(e, MemoryError)})
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # threads that the function left behind are not waited for


def _frame(result: socket.socket, head: dict[str, Any], body: Any = b"") -> None:
    text = json.dumps(head).encode()
    result.sendall(struct.pack("<I", len(text)) + text)
    if len(body):
        result.sendall(body)


def _send(result: socket.socket, answer: Any) -> None:
    if not isinstance(answer, dict):
        answer = {"servicex": answer}
    elif not answer:
        raise TypeError("run_query returned an empty dict; it has no tree")
    for tree, value in answer.items():
        if not isinstance(tree, str) or not tree:
            raise TypeError(f"run_query returned a dict with the key {tree!r}; keys name trees and are text")
        _send_tree(result, tree, value)


def _send_tree(result: socket.socket, tree: str, value: Any) -> None:
    import awkward as ak
    import numpy as np

    if isinstance(value, np.ndarray):
        value = ak.from_numpy(value)
    if not isinstance(value, ak.Array):
        kind = type(value)
        name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        raise TypeError(
            f"run_query returned {name} for the tree {tree!r}; return an awkward array or a dict of them"
        )
    per = max(1, int(BATCH / max(1.0, value.nbytes / max(1, len(value)))))
    per = min(per, ROWS)
    for start in range(0, max(1, len(value)), per):
        _frame_table(result, tree, value[start : start + per])


def _frame_table(result: socket.socket, tree: str, part: Any) -> None:
    import awkward as ak
    import pyarrow as pa

    names = ak.fields(part)
    fields, columns = [], []
    for name in names or [""]:
        column = ak.to_packed(part[name] if names else part)
        data = ak.to_arrow(column, extensionarray=False, list_to32=True)
        fields.append(pa.field(name, data.type, nullable=column.layout.is_option))
        columns.append(data)
    table = pa.table(columns, schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue()
    _frame(result, {"tree": tree, "rows": len(part), "size": body.size}, memoryview(body))
