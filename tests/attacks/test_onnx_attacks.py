"""Hostile ONNX files: each is made here field by field, and refused by the rule it breaks."""

import base64
from struct import pack

import pytest

from steelyard.errors import Malformed
from steelyard.formats import onnx_file, onnx_tensor
from steelyard.formats.base import BytesSource
from steelyard.formats.onnx_file import FORMAT

FLOAT, STRING, INT4 = 1, 8, 22


def varint(value: int) -> bytes:
    out = bytearray()
    value %= 1 << 64
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(key: int, value: int) -> bytes:
    return varint(key << 3) + varint(value)


def field(key: int, payload: bytes | str) -> bytes:
    payload = payload.encode() if isinstance(payload, str) else payload
    return varint(key << 3 | 2) + varint(len(payload)) + payload


def node(operator: str = "Relu", domain: str = "", *attributes: bytes) -> bytes:
    body = field(1, "x") + field(2, "y") + field(4, operator) + b"".join(field(5, one) for one in attributes)
    return body + (field(7, domain) if domain else b"")


def tensor(*, dims: tuple[int, ...] = (2,), kind: int = FLOAT, raw: bytes | None = bytes(8), more: bytes = b"",
           name: str = "w") -> bytes:  # fmt: skip
    body = b"".join(number(1, size) for size in dims) + number(2, kind) + field(8, name)
    return body + (b"" if raw is None else field(9, raw)) + more


def external(more: bytes = b"", **pairs: str) -> bytes:
    entries = b"".join(field(13, field(1, key) + field(2, value)) for key, value in pairs.items())
    return tensor(raw=None, more=entries + more + number(14, 1))


def graph(*nodes: bytes, tensors: tuple[bytes, ...] = (), more: bytes = b"") -> bytes:
    return (
        b"".join(field(1, one) for one in nodes or (node(),))
        + b"".join(field(5, one) for one in tensors)
        + more
    )


OPSET = field(8, field(1, "") + number(2, 17))


def model(body: bytes | None = None, *, opset: bytes = OPSET, more: bytes = b"") -> bytes:
    return number(1, 8) + field(7, graph() if body is None else body) + opset + more


def function(name: str, *nodes: bytes, domain: str = "d", more: bytes = b"") -> bytes:
    return field(25, field(1, name) + b"".join(field(7, one) for one in nodes) + field(10, domain) + more)


def rules_of(data: bytes) -> set[str]:
    assert FORMAT.sniff(data[:4096], "model.onnx")
    try:
        return {finding.rule for finding in FORMAT.read(BytesSource(data), "model.onnx").findings}
    except Malformed as error:
        return {error.rule}


def refused(data: bytes, rule: str) -> None:
    assert f"onnx/{rule}" in FORMAT.rules
    assert rules_of(data) == {f"onnx/{rule}"}


def test_the_file_the_attacks_start_from_is_clean():
    assert (
        rules_of(
            model(graph(node(), tensors=(tensor(), external(location="w.bin", offset="8", length="8"))[:1]))
        )
        == set()
    )
    assert rules_of(model(graph(tensors=(external(location="w.bin", offset="8", length="8"),)))) == set()


@pytest.mark.parametrize("domain", ["com.evil", "ai.onnx.contrib2", "com.microsoft.custom", "Ai.Onnx"])
def test_operator_of_a_custom_domain(domain):
    refused(model(graph(node("Relu", domain))), "operator")


def test_operator_that_does_not_exist():
    refused(model(graph(node("RunCommand"))), "operator")
    refused(model(graph(node(""))), "operator")


@pytest.mark.parametrize(("name", "domain"), [
    ("PyOp", "ai.onnx.contrib"), ("PythonOp", "com.microsoft"), ("ATen", "org.pytorch.aten"),
    ("AzureText", "com.microsoft.extensions"),
])  # fmt: skip
def test_operator_that_calls_python(name, domain):
    refused(model(graph(node(name, domain))), "python-operator")


@pytest.mark.parametrize("name", ["EPContext", "Snpe"])
def test_operator_that_loads_a_vendors_blob(name):
    refused(model(graph(node(name, "com.microsoft"))), "native-operator")


def test_custom_operator_in_a_subgraph():
    inner = field(1, "then_branch") + field(6, graph(node("Evil", "com.evil")))
    refused(model(graph(node("If", "", inner))), "operator")


def test_custom_operator_in_a_list_of_graphs():
    refused(model(graph(node("If", "", field(11, graph(node("Evil", "com.evil")))))), "operator")


def test_custom_operator_in_a_function():
    refused(model(graph(node("F", "d")), more=function("F", node("Evil", "com.evil"))), "operator")


def test_custom_operator_in_a_graph_of_a_functions_default():
    refused(
        model(
            graph(node("F", "d")), more=function("F", node(), more=field(11, field(6, graph(node("E", "e")))))
        ),
        "operator",
    )


def test_custom_operator_in_training():
    refused(model(more=field(20, field(2, graph(node("Evil", "com.evil"))))), "operator")


def test_custom_operator_behind_many_equal_nodes():
    """The reader takes a fast way for nodes it has seen."""
    refused(model(graph(*[node()] * 50, node("Relu", "com.evil"))), "operator")
    refused(model(graph(*[node()] * 50, node() + field(4, "Evil"))), "field")


def test_subgraph_behind_attributes_seen_before():
    clean, evil = field(1, "a") + number(3, 1), field(1, "g") + field(6, graph(node("Evil", "e")))
    refused(model(graph(*[node("Relu", "", clean)] * 5, node("Relu", "", clean, evil))), "operator")
    refused(model(graph(*[node("Relu", "", evil)] * 3)), "operator")


@pytest.mark.parametrize("location", [
    "/etc/passwd", "../../secret", "a/../../b", "C:\\w.bin", "http://evil.example/w", "file:///etc/passwd",
    "a\\..\\b", "\\\\host\\w", "", ".", "..", "w\0.bin",
])  # fmt: skip
def test_cve_2022_25882_external_data_outside_the_folder(location):
    refused(model(graph(tensors=(external(location=location),))), "external-path")


def test_cve_2024_27318_traversal_hidden_behind_a_plain_part():
    refused(model(graph(tensors=(external(location="./weights/../../secret"),))), "external-path")


def test_cve_2026_27489_traversal_in_an_attributes_tensor():
    inner = field(1, "value") + field(5, external(location="../secret"))
    refused(model(graph(node("Constant", "", inner))), "external-path")


def test_external_data_outside_the_folder_in_every_place_of_a_tensor():
    evil = external(location="../secret")
    sparse = field(1, evil) + field(2, tensor(kind=7, raw=bytes(16)))
    for place in (field(15, sparse), field(1, node("If", "", field(6, graph(tensors=(evil,)))))):
        refused(model(graph(more=place)), "external-path")
    for attribute in (field(10, evil), field(22, sparse), field(23, sparse)):
        refused(model(graph(node("Relu", "", attribute))), "external-path")


def test_external_location_in_the_loaders_memory():
    refused(model(graph(tensors=(external(location="*/_ORT_MEM_ADDR_/*", offset="4096"),))), "external-key")


def test_external_key_that_becomes_an_attribute():
    refused(model(graph(tensors=(external(location="w", basepath="/etc"),))), "external-key")


def test_external_key_twice():
    twice = field(13, field(1, "location") + field(2, "v"))
    refused(model(graph(tensors=(external(twice, location="w"),))), "external-key")


@pytest.mark.parametrize("pairs", [{"offset": "-1"}, {"offset": "0x10"}, {"offset": "9" * 19}, {"offset": ""},
                                   {"length": "9"}, {"length": "-8"}, {"length": "7"}, {"offset": "1e3"},
                                   {"offset": " 1"}, {"offset": "\u0661"}])  # fmt: skip
def test_external_range_that_leaves_the_file_or_the_tensor(pairs):
    refused(model(graph(tensors=(external(location="w", **pairs),))), "external-range")


def test_tensor_here_and_outside_at_once():
    both = tensor(more=field(13, field(1, "location") + field(2, "w")) + number(14, 1))
    refused(model(graph(tensors=(both,))), "tensor-size")


@pytest.mark.parametrize("raw", [b"", bytes(7), bytes(9), bytes(1 << 16)])
def test_tensor_whose_bytes_disagree_with_its_shape(raw):
    refused(model(graph(tensors=(tensor(raw=raw),))), "tensor-size")


def test_tensor_without_data():
    refused(model(graph(tensors=(tensor(raw=None),))), "tensor-size")


def test_tensor_in_two_fields():
    refused(model(graph(tensors=(tensor(more=field(4, pack("<2f", 1, 2))),))), "tensor-size")


def test_tensor_in_a_field_of_another_type():
    refused(model(graph(tensors=(tensor(raw=None, more=field(7, b"\1\2")),))), "tensor-size")


def test_tensor_of_strings_in_raw_bytes():
    refused(model(graph(tensors=(tensor(kind=STRING, raw=b"ab"),))), "tensor-size")


def test_tensor_in_segments():
    refused(model(graph(tensors=(tensor(more=field(3, number(1, 0) + number(2, 1))),))), "tensor-size")


def test_odd_number_of_four_bit_elements():
    assert rules_of(model(graph(tensors=(tensor(dims=(3,), kind=INT4, raw=bytes(2)),)))) == set()
    refused(model(graph(tensors=(tensor(dims=(3,), kind=INT4, raw=bytes(1)),))), "tensor-size")


@pytest.mark.parametrize("dims", [(-1,), (2**62, 2), (2**32, 2**32), (0, 2**63)])
def test_shape_that_wraps_around(dims):
    refused(model(graph(tensors=(tensor(dims=dims, raw=b""),))), "tensor-shape")


def test_dimensions_to_the_limit_and_past_it():
    ones = (1,) * (onnx_tensor.MAX_DIMENSIONS - 1)
    assert rules_of(model(graph(tensors=(tensor(dims=(2, *ones)),)))) == set()
    refused(model(graph(tensors=(tensor(dims=(2, 1, *ones)),))), "tensor-shape")


def test_sparse_tensor_of_negative_size():
    sparse = field(1, tensor()) + field(2, tensor(kind=7, raw=bytes(16))) + number(3, -1)
    refused(model(graph(more=field(15, sparse))), "tensor-shape")


@pytest.mark.parametrize("kind", [0, 29, 1 << 20])
def test_tensor_of_no_known_type(kind):
    refused(model(graph(tensors=(tensor(kind=kind),))), "tensor-type")


def test_two_tensors_of_one_name():
    refused(model(graph(tensors=(tensor(), tensor()))), "duplicate")
    sparse = field(1, tensor()) + field(2, tensor(kind=7, raw=bytes(16)))
    refused(model(graph(tensors=(tensor(),), more=field(15, sparse))), "duplicate")


def test_two_functions_of_one_name():
    refused(model(more=function("F", node()) * 2), "duplicate")
    overloaded = function("F", node(), more=field(13, "1")) + function("F", node(), more=field(13, "2"))
    assert rules_of(model(more=overloaded)) == set()


def test_model_without_operator_sets():
    refused(model(opset=b""), "opset")


def test_operator_set_in_two_versions():
    other = field(8, field(1, "ai.onnx") + number(2, 9))
    refused(model(opset=OPSET + other), "opset")
    assert rules_of(model(opset=OPSET + OPSET)) == set()  # skl2onnx writes it twice


def test_function_that_calls_itself():
    refused(model(graph(node("F", "d")), more=function("F", node("F", "d"))), "function-cycle")


def test_functions_that_call_one_another():
    both = function("F", node("G", "d")) + function("G", node("If", "", field(6, graph(node("F", "d")))))
    refused(model(more=both), "function-cycle")


def test_functions_that_unfold_to_more_than_any_machine_holds():
    body = b"".join(function(f"F{level}", *[node(f"F{level + 1}", "d")] * 10) for level in range(8))
    fits = model(graph(node("F2", "d")), more=body + function("F8", node()))
    assert onnx_file.MAX_EXPANDED >= 10**6
    assert rules_of(fits) == set()
    refused(model(graph(node("F0", "d")), more=body + function("F8", node())), "function-cycle")


PICKLE = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."


@pytest.mark.parametrize("value", [
    base64.b64encode(PICKLE), base64.urlsafe_b64encode(PICKLE), PICKLE.hex().encode(),
    base64.b64encode(b"\x7fELF" + bytes(40)), base64.b64encode(b"PK\x03\x04" + bytes(30)), b"\x7fELF" + bytes(10),
    base64.encodebytes(PICKLE * 8), b"#!/bin/sh\ntrue\n",
])  # fmt: skip
def test_program_in_the_metadata(value):
    refused(model(more=field(14, field(1, "state") + field(2, value))), "metadata-payload")


@pytest.mark.parametrize(
    "value", [b"", b"32", b"{0: 'person'}", b"deadbeefdeadbeef" * 4, b"SGVsbG8gd29ybGQh" * 4]
)
def test_plain_metadata_is_clean(value):
    assert rules_of(model(more=field(14, field(1, "k") + field(2, value)))) == set()


def test_program_in_a_nodes_metadata():
    entry = field(9, field(1, "state") + field(2, base64.b64encode(PICKLE)))
    refused(model(graph(node() + entry)), "metadata-payload")


def test_second_file_behind_the_model():
    refused(model(more=b"PK\x03\x04" + bytes(30)), "field")


def test_second_graph_of_which_a_loader_takes_the_last():
    refused(model(more=field(7, graph(node("Evil", "com.evil")))), "field")


def test_bytes_in_a_field_outside_the_schema():
    refused(model(more=field(99, b"payload")), "field")
    refused(model(graph(node() + field(60, b"payload"))), "field")


def test_length_past_its_message():
    refused(model(b"\x0a\x7f"), "truncated")


def test_number_of_too_many_bits():
    refused(model(graph(tensors=(b"\x10" + b"\xff" * 10 + b"\1",))), "varint")


def test_graphs_nested_without_end():
    body = graph()
    for _ in range(40):
        body = graph(node("If", "", field(1, "b") + field(6, body)))
    refused(model(body), "depth")


def test_operator_name_that_is_not_text():
    refused(model(graph(field(4, b"\xff\xfe"))), "encoding")


def test_external_data_in_too_many_files():
    names = [external(location=f"w{index}") for index in range(onnx_tensor.MAX_EXTERNAL_FILES)]
    unique = tuple(one.replace(b"B\x01w", field(8, f"n{index}")) for index, one in enumerate(names))
    assert rules_of(model(graph(tensors=unique))) == set()
    refused(model(graph(tensors=(*unique, external(location="last")))), "limit")


def test_model_without_a_graph():
    refused(number(1, 8) + OPSET, "graph")


def test_a_model_in_another_order_is_claimed_by_nobody():
    assert not FORMAT.sniff(field(7, graph()) + number(1, 8) + OPSET, "model.onnx")
