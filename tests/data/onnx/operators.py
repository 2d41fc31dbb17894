"""Prints the operators that src/steelyard/formats/onnx_operators.py lists, from the libraries' own registries.

Run on 2026-11-23 once with onnx 1.16.2 and onnxruntime 1.32.0, once with onnx 1.23.2: python operators.py
The module holds the union. Left out: what hands a blob or a file to a vendor's library.
"""

import onnx.defs
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

NATIVE = {"EPContext", "Snpe"}

names: dict[str, set[str]] = {}
for schema in onnx.defs.get_all_schemas_with_history():
    names.setdefault(schema.domain, set()).add(schema.name)
for schema in get_all_operator_schema():
    if schema.name not in NATIVE:
        names.setdefault(schema.domain, set()).add(schema.name)
names["ai.onnx.training"] = names["ai.onnx.preview.training"]  # the domain's later name
for domain in sorted(names):
    print(repr(domain), *sorted(names[domain]))
