"""Awkward layouts and C++ type names as Arrow: only the kinds that event data has, without copies of content.

Lists get 32-bit offsets, as NanoAOD's Parquet files have; fixed-size arrays become lists too, so that one
query fits files of either kind.
"""

import re
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.types as pt

_CPP = {
    "bool": pa.bool_(), "char": pa.int8(), "std::byte": pa.uint8(), "float": pa.float32(),
    "double": pa.float64(), "std::string": pa.string(),
    **{f"std::{s}int{b}_t": getattr(pa, f"{s}int{b}")() for s in ("", "u") for b in (8, 16, 32, 64)},
}  # fmt: skip
_LIST = re.compile(r"(?:std::vector|ROOT::VecOps::RVec|ROOT::RVec)<(.*)>$", re.DOTALL)
_FIXED = re.compile(r"std::array<(.*),\d+>$", re.DOTALL)
_COUNT = re.compile(r"ROOT::(?:Experimental::)?RNTupleCardinality<(.*)>$")
_MAX_NESTING = 8
_TEXT = ("string", "bytestring")


def type_of_form(form: Any) -> pa.DataType | None:
    """The Arrow type of an awkward form; None: there is none here."""
    if isinstance(form, ak.forms.NumpyForm):
        if form.primitive == "float16" or form.inner_shape:
            return None
        return _primitive(form.primitive)
    if isinstance(form, ak.forms.ListOffsetForm | ak.forms.ListForm | ak.forms.RegularForm):
        if form.parameter("__array__") in _TEXT:
            return pa.string()
        inner = type_of_form(form.content)
        return None if inner is None else pa.list_(inner)
    if isinstance(form, ak.forms.RecordForm) and not form.is_tuple and form.fields:
        found = [
            (name, type_of_form(content)) for name, content in zip(form.fields, form.contents, strict=True)
        ]
        return None if any(kind is None for _, kind in found) else pa.struct(found)
    return None


def type_of_cpp(name: str) -> pa.DataType | None:
    """The Arrow type of a C++ type name as RNTuple spells it; None: there is none here.

    >>> type_of_cpp("ROOT::VecOps::RVec<float>"), type_of_cpp("ROOT::RNTupleCardinality<std::uint32_t>")
    (ListType(list<item: float>), DataType(uint32))
    """
    for depth in range(_MAX_NESTING):
        if name in _CPP:
            kind = _CPP[name]
            for _ in range(depth):
                kind = pa.list_(kind)
            return kind
        match = _LIST.match(name) or _FIXED.match(name)
        if match is None:
            break
        name = match[1].strip()
    count = _COUNT.match(name)
    return _CPP.get(count[1]) if count else None


def arrow_array(layout: Any, kind: pa.DataType) -> pa.Array:
    """An awkward layout as an Arrow array of this type.

    Raises:
        pa.ArrowException, ValueError: the content does not fit the type.
    """
    if isinstance(layout, ak.contents.IndexedArray):
        layout = layout.project()
    if pt.is_list(kind):
        layout = layout.to_ListOffsetArray64(True)
        offsets = np.asarray(layout.offsets)
        if len(offsets) and offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError("more than 2^31 objects in one group")
        content = layout.content[: int(offsets[-1])] if len(offsets) else layout.content
        return pa.ListArray.from_arrays(offsets.astype(np.int32), arrow_array(content, kind.value_type))
    if pt.is_string(kind):
        layout = layout.to_ListOffsetArray64(True)
        data = np.ascontiguousarray(np.asarray(layout.content.data)).view(np.uint8)
        offsets = np.asarray(layout.offsets)
        text = pa.LargeStringArray.from_buffers(
            len(layout), pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(data)
        )
        text.validate(full=True)  # ROOT's strings need not be UTF-8
        return text.cast(pa.string())
    if pt.is_struct(kind):
        fields = [kind.field(n) for n in range(kind.num_fields)]
        return pa.StructArray.from_arrays(
            [arrow_array(layout[f.name], f.type) for f in fields], fields=fields
        )
    values = np.asarray(layout.data if isinstance(layout, ak.contents.NumpyArray) else layout)
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("="))
    array = pa.array(np.ascontiguousarray(values))
    return array if array.type == kind else array.cast(kind)


def _primitive(name: str) -> pa.DataType | None:
    if name == "bool":
        return pa.bool_()
    return getattr(pa, name)() if re.fullmatch(r"u?int(8|16|32|64)|float(32|64)", name) else None
