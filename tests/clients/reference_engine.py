"""Runs queries through func_adl_uproot, in its own environment: jobs on standard input, answers on output.

A job is ``[qastle, file]``; an answer is ``{"columns": {name: [type, values]}}`` or ``{"error": text}``, one
JSON a line. A list of records becomes a struct of lists, as in delivered files; a single value is a row.
"""

import json
import sys
import warnings
from typing import Any

import awkward as ak
import numpy as np
from func_adl_uproot.translation import generate_function  # type: ignore[import-not-found]
from reference_types import plain  # type: ignore[import-not-found]


def columns(result: Any) -> dict[str, Any]:
    if isinstance(result, ak.Record):
        rows = ak.Array(result.layout.array[result.layout.at : result.layout.at + 1])
        return {name: rows[name] for name in result.fields}
    if not isinstance(result, ak.Array):
        return {"": ak.Array(np.asarray([result]))}
    layout, lists = result.layout, 0
    while layout.is_list or layout.is_option or layout.is_indexed:
        lists, layout = lists + layout.is_list, layout.content
    if layout.is_record and lists <= 1:
        return {name: result[name] for name in ak.fields(result)}
    return {"": result}


def main() -> None:
    warnings.simplefilter("ignore")
    for text, path in json.load(sys.stdin):
        try:
            found = columns(generate_function(text)(path))
            answer: dict[str, Any] = {
                "columns": {n: [plain(c.type.content), ak.to_list(c)] for n, c in found.items()}
            }
        except Exception as e:  # noqa: BLE001 - whatever it fails with is its answer
            answer = {"error": type(e).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
