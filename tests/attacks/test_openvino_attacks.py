"""Hostile OpenVINO networks: each is a few lines of XML, and refused by the rule it breaks."""

import pytest

from steelyard.errors import Malformed
from steelyard.formats import openvino
from steelyard.formats.base import BytesSource
from steelyard.formats.openvino import FORMAT

CONST = '<layer id="0" name="c" type="Const" version="opset1">' + (
    '<data element_type="f32" shape="2" offset="0" size="8"/></layer>'
)


def net(body: str = CONST, head: str = '<?xml version="1.0"?>', more: str = "") -> bytes:
    return f'{head}<net name="m" version="11"><layers>{body}</layers>{more}</net>'.encode()


def layer(kind: str = "ReLU", version: str = "opset1", inner: str = "") -> str:
    return f'<layer id="1" name="n" type="{kind}" version="{version}">{inner}</layer>'


def const(**changes: str) -> str:
    values = {"element_type": "f32", "shape": "2", "offset": "0", "size": "8", **changes}
    data = " ".join(f'{key}="{value}"' for key, value in values.items())
    return layer("Const", inner=f"<data {data}/>")


def rules_of(data: bytes, path: str = "m.xml") -> set[str]:
    assert FORMAT.sniff(data[:4096], path)
    try:
        return {finding.rule for finding in FORMAT.read(BytesSource(data), path).findings}
    except Malformed as error:
        return {error.rule}


def refused(data: bytes, rule: str, path: str = "m.xml") -> None:
    assert f"openvino/{rule}" in FORMAT.rules
    assert rules_of(data, path) == {f"openvino/{rule}"}


def test_the_network_the_attacks_start_from_is_clean():
    assert rules_of(net()) == set()
    assert rules_of(net(const() + layer("Result"))) == set()


@pytest.mark.parametrize("doctype", [
    '<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE net SYSTEM "http://evil.example/x.dtd">',
    '<!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>',
    "<!DOCTYPE net>",
])  # fmt: skip
def test_document_type_or_entity(doctype):
    refused(net(head=f'<?xml version="1.0"?>{doctype}'), "doctype")


def test_entity_that_is_not_declared():
    refused(net(more="<rt_info>&evil;</rt_info>"), "syntax")


def test_processing_instruction():
    refused(net(more='<?xml-stylesheet href="http://evil.example/x"?>'), "doctype")


@pytest.mark.parametrize(
    "version", ["extension", "custom_opset", "", "opset0", "opset100", "opset1 ", "OPSET1", "experimental"]
)
def test_operator_of_a_set_that_is_not_published(version):
    refused(net(layer(version=version)), "extension-operator")


def test_operator_of_an_extension_in_a_body():
    inner = f"<body><layers>{layer('Evil', 'extension')}</layers></body>"
    refused(net(layer("Loop", "opset5", inner)), "extension-operator")


@pytest.mark.parametrize("body", ['<extensions library="evil.so"/>', "<script/>", "<net/>"])
def test_element_outside_the_format(body):
    refused(net(more=body), "element")


def test_element_in_data_about_the_conversion_is_clean():
    assert rules_of(net(more='<rt_info><anything value="x"/></rt_info>')) == set()


def test_weights_stay_checked_behind_data_about_the_conversion():
    refused(
        net(more=f"<rt_info><a/></rt_info><layers>{layer('Evil', 'extension')}</layers>"),
        "extension-operator",
    )


@pytest.mark.parametrize("changes", [{"offset": "-1"}, {"size": "4"}, {"size": "-8"}, {"size": "9"}, {"offset": "1e3"},
                                     {"offset": ""}, {"shape": "3"}, {"element_type": "f31"}, {"shape": "-2"},
                                     {"shape": "4294967296,4294967296"}, {"offset": "9" * 19}])  # fmt: skip
def test_weights_that_leave_the_file_or_the_tensor(changes):
    refused(net(const(**changes)), "weights-range")


def test_weights_of_older_networks_are_checked():
    blobs = '<blobs><weights offset="-8" size="8"/></blobs>'
    refused(net(layer("FullyConnected", "opset1", blobs)), "weights-range")


def test_weights_end_is_the_reference():
    report = FORMAT.read(BytesSource(net(const(offset="100"))), "a/b/net.xml")
    assert [(one.path, one.end) for one in report.references] == [("net.bin", 108)]


def test_gap_between_weights():
    edge = openvino.MAX_GAP_BYTES
    assert rules_of(net(const(offset=str(edge)))) == set()
    refused(net(const(offset=str(edge + 1))), "weights-gap")


def test_network_under_another_name():
    refused(net(), "name", "model.txt")


def test_elements_nest_to_the_limit_and_not_past_it():
    deep = openvino.MAX_DEPTH - 2
    inside = "<a>" * deep + "</a>" * deep
    assert rules_of(net(more=f"<rt_info>{inside}</rt_info>")) == set()
    refused(net(more=f"<rt_info><a>{inside}</a></rt_info>"), "limit")


def test_broken_and_foreign_xml():
    refused(net()[:-3], "syntax")
    refused(net() + b"PK\x03\x04", "syntax")
    refused(net(layer("R\u00e4")).decode().encode("latin1"), "syntax")
    refused(net(layer("a b")), "extension-operator")


def test_attribute_longer_than_is_kept():
    refused(net(layer(inner=f'<data x="{"a" * (openvino.MAX_ATTRIBUTE_CHARS + 1)}"/>')), "element")


def test_file_larger_than_is_read():
    class Huge:
        size = openvino.MAX_BYTES + 1

        def read(self, offset: int, size: int) -> bytes:
            raise AssertionError("nothing is read")

    with pytest.raises(Malformed) as caught:
        FORMAT.read(Huge(), "m.xml")
    assert caught.value.rule == "openvino/limit"
