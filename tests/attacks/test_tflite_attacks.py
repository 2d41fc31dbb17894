"""Hostile TensorFlow Lite files: each is a few hundred bytes, written here table by table."""

import io
import zipfile
from collections.abc import Callable
from struct import pack, pack_into

import pytest

from steelyard.errors import Malformed
from steelyard.formats import flatbuffer, tflite
from steelyard.formats.base import BytesSource
from steelyard.formats.tflite import FORMAT

Part = Callable[[bytearray], int]


def table(**slots: "int | Part") -> Part:
    """Fields named s0, s1, ...: numbers of eight bytes, or what a reference leads to."""
    fields = {int(name[1:]): value for name, value in slots.items()}

    def write(out: bytearray) -> int:
        count = max(fields, default=-1) + 1
        listed = len(out)
        places = {slot: 4 + 8 * place for place, slot in enumerate(fields)}
        out += pack("<HH", 4 + 2 * count, 4 + 8 * len(fields))
        out += b"".join(pack("<H", places.get(slot, 0)) for slot in range(count))
        at = len(out)
        out += pack("<i", at - listed) + bytes(8 * len(fields))
        for slot, value in fields.items():
            place = at + places[slot]
            if isinstance(value, int):
                pack_into("<Q", out, place, value % (1 << 64))
            else:
                pack_into("<I", out, place, value(out) - place)
        return at

    return write


def tables(*items: Part) -> Part:
    def write(out: bytearray) -> int:
        at = len(out)
        out += pack("<I", len(items)) + bytes(4 * len(items))
        for index, item in enumerate(items):
            place = at + 4 + 4 * index
            pack_into("<I", out, place, item(out) - place)
        return at

    return write


def numbers(form: str, *items: int) -> Part:
    def write(out: bytearray) -> int:
        at = len(out)
        out.extend(pack("<I", len(items)) + pack(f"<{len(items)}{form}", *items))
        return at

    return write


def text(value: str | bytes) -> Part:
    def write(out: bytearray) -> int:
        data = value.encode() if isinstance(value, str) else value
        at = len(out)
        out.extend(pack("<I", len(data)) + data + b"\0")
        return at

    return write


def raw(data: bytes) -> Part:
    return numbers("B", *data)


def tensor(shape: tuple[int, ...] = (2,), kind: int = 0, buffer: int = 1, **more: "int | Part") -> Part:
    return table(s0=numbers("i", *shape), s1=kind, s2=buffer, s3=text("t"), **more)


def operator(
    code: int = 0, inputs: tuple[int, ...] = (0,), outputs: tuple[int, ...] = (0,), **more: "int | Part"
) -> Part:
    return table(s0=code, s1=numbers("i", *inputs), s2=numbers("i", *outputs), **more)


def subgraph(*, tensors: tuple[Part, ...] = (tensor(),), operators: tuple[Part, ...] = (operator(),),
             inputs: tuple[int, ...] = (0,)) -> Part:  # fmt: skip
    return table(
        s0=tables(*tensors), s1=numbers("i", *inputs), s2=numbers("i"), s3=tables(*operators), s4=text("main")
    )


CODE = table(s0=0, s2=1, s3=0)
BUFFERS = (table(), table(s0=raw(bytes(8))))


def model(*, version: int = 3, codes: tuple[Part, ...] = (CODE,), graphs: tuple[Part, ...] = (subgraph(),),
          buffers: tuple[Part, ...] = BUFFERS, **more: "int | Part") -> bytes:  # fmt: skip
    out = bytearray(b"\0\0\0\0TFL3")
    root = table(
        s0=version, s1=tables(*codes), s2=tables(*graphs), s3=text("d"), s4=tables(*buffers), **more
    )(out)
    pack_into("<I", out, 0, root)
    return bytes(out)


def rules_of(data: bytes) -> set[str]:
    assert FORMAT.sniff(data[:4096], "m.tflite")
    try:
        report = FORMAT.read(BytesSource(data), "m.tflite")
        if report.children is not None:
            for child in report.children():
                child.open()
        return {finding.rule for finding in report.findings}
    except Malformed as error:
        return {error.rule}


def refused(data: bytes, rule: str) -> None:
    assert rule in FORMAT.rules
    assert rules_of(data) == {rule}


def custom(name: str) -> bytes:
    return model(codes=(table(s0=32, s1=text(name), s2=1, s3=32),))


def test_the_model_the_attacks_start_from_is_clean():
    assert rules_of(model()) == set()


@pytest.mark.parametrize("name", ["Evil", "", "tflite_detection_postprocess", "ReadFile"])
def test_custom_operator(name):
    refused(custom(name), "tflite/custom-operator")


def test_custom_operator_of_the_runtime_is_clean():
    assert rules_of(custom("TFLite_Detection_PostProcess")) == set()


@pytest.mark.parametrize("name", ["FlexReadFile", "FlexWriteFile", "FlexPyFunc", "Flex", "FlexAdd"])
def test_flex_operator(name):
    refused(custom(name), "tflite/flex-operator")


def test_custom_operator_in_the_old_code_only():
    refused(model(codes=(table(s0=32, s1=text("Evil"), s2=1),)), "tflite/custom-operator")


@pytest.mark.parametrize("number", [tflite.LAST_OPERATOR + 1, 51, 127, 173, 1 << 30])
def test_operator_number_that_is_none_or_loads_native_code(number):
    refused(model(codes=(table(s0=0, s2=1, s3=number),)), "tflite/operator")


def test_last_operator_is_known():
    assert rules_of(model(codes=(table(s0=127, s2=1, s3=tflite.LAST_OPERATOR),))) == set()


def test_builtin_operator_with_a_custom_name():
    refused(model(codes=(table(s0=0, s1=text("FlexReadFile"), s3=0),)), "tflite/operator")


@pytest.mark.parametrize("graph", [
    subgraph(operators=(operator(code=1),)),
    subgraph(operators=(operator(inputs=(1,)),)),
    subgraph(operators=(operator(outputs=(-2,)),)),
    subgraph(operators=(operator(s8=numbers("i", 7)),)),
    subgraph(inputs=(1,)),
    subgraph(tensors=(tensor(buffer=2),)),
    subgraph(tensors=(tensor(kind=21),)),
])  # fmt: skip
def test_index_outside_its_list(graph):
    refused(model(graphs=(graph,)), "tflite/index")


def test_signature_and_metadata_outside_their_lists():
    refused(model(s7=tables(table(s2=text("k"), s4=1))), "tflite/index")
    refused(model(s7=tables(table(s0=tables(table(s0=text("x"), s1=9)), s2=text("k"), s4=0))), "tflite/index")
    refused(model(s6=tables(table(s0=text("m"), s1=9))), "tflite/index")
    refused(model(s5=numbers("i", 9)), "tflite/index")


@pytest.mark.parametrize("size", [4, 7, 9, 1024])
def test_tensor_whose_buffer_disagrees_with_its_shape(size):
    refused(model(buffers=(table(), table(s0=raw(bytes(size))))), "tflite/tensor-size")


@pytest.mark.parametrize("shape", [(1 << 30, 1 << 30, 1 << 10), (-2,)])
def test_shape_that_wraps_around(shape):
    refused(model(graphs=(subgraph(tensors=(tensor(shape),)),)), "tflite/tensor-size")


def test_buffer_behind_the_model():
    clean = model(buffers=(table(), table(s1=1, s2=0)))
    assert rules_of(clean) == set()
    size = len(model(buffers=(table(), table(s1=4096, s2=8))))
    behind = model(buffers=(table(), table(s1=size, s2=8)))
    assert rules_of(behind + bytes(8)) == set()
    refused(behind + bytes(7), "tflite/offset")
    refused(model(buffers=(table(), table(s1=1 << 63, s2=1 << 63))), "tflite/offset")
    refused(model(buffers=(table(), table(s0=raw(bytes(8)), s1=64, s2=8))), "tflite/index")


def test_weights_in_another_file():
    assert "tflite/external" in rules_of(model(s8=tables(table(s0=text("../../etc/passwd")))))
    refused(model(graphs=(subgraph(tensors=(tensor(s10=1),)),)), "tflite/external")


def test_schema_of_another_version():
    refused(model(version=2), "tflite/version")


def test_model_without_a_subgraph():
    refused(model(graphs=()), "tflite/empty")


def test_payload_between_tables():
    out = bytearray(model())
    shifted = out[:8] + bytes(tflite.MAX_GAP_BYTES + 100) + out[8:]
    pack_into("<I", shifted, 0, int.from_bytes(out[:4], "little") + tflite.MAX_GAP_BYTES + 100)
    refused(bytes(shifted), "tflite/gap")


def test_second_file_behind_the_model():
    refused(model() + b"\x7fELF" + bytes(60), "tflite/trailing")
    refused(model() + b"\x80\x04.", "tflite/trailing")
    refused(model() + bytes(tflite.MAX_ALIGNMENT), "tflite/trailing")
    assert rules_of(model() + bytes(tflite.MAX_ALIGNMENT - 1)) == set()


def zipped(data: bytes, name: str, content: bytes = b"cat\n") -> bytes:
    out = io.BytesIO(data)
    out.seek(len(data))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(name, content)
    return out.getvalue()


def test_associated_file_that_leaves_the_folder():
    refused(zipped(model(), "../../x"), "zip/name")


def test_associated_file_whose_checksum_is_wrong():
    data = zipped(model(), "labels.txt")
    refused(data.replace(b"cat\n", b"dog\n"), "zip/crc")


def test_archive_that_does_not_follow_the_model():
    refused(zipped(model() + b"MZ" + bytes(80), "labels.txt"), "tflite/trailing")


def test_reference_that_leads_backwards():
    def graphs(out: bytearray) -> int:
        first = subgraph()(out)
        at = len(out)
        out.extend(pack("<I", 1) + pack("<I", (first - at - 4) % (1 << 32)))
        return at

    refused(with_graphs(graphs), "tflite/offset")


def with_graphs(graphs: Part) -> bytes:
    out = bytearray(b"\0\0\0\0TFL3")
    root = table(s0=3, s1=tables(CODE), s2=graphs, s4=tables(*BUFFERS))(out)
    pack_into("<I", out, 0, root)
    return bytes(out)


def test_one_subgraph_listed_twice():
    def twice(out: bytearray) -> int:
        at = len(out)
        out.extend(pack("<I", 2) + bytes(8))
        first = subgraph()(out)
        pack_into("<II", out, at + 4, first - at - 4, first - at - 8)
        return at

    refused(with_graphs(twice), "tflite/shared")


def test_offsets_that_leave_the_file():
    data = bytearray(model())
    pack_into("<I", data, 0, 1 << 31)
    refused(bytes(data), "tflite/offset")
    pack_into("<I", data, 0, len(data) - 2)
    refused(bytes(data), "tflite/offset")
    refused(model()[:40], "tflite/table")


def test_field_list_that_does_not_fit():
    root = int.from_bytes(model()[:4], "little")
    for size, length in ((3, 4), (5, 4), (0, 0), (0xFFFF, 4), (6, 2)):
        data = bytearray(model())
        listed = root - int.from_bytes(data[root : root + 4], "little")
        pack_into("<HH", data, listed, size, length)
        assert rules_of(bytes(data)) <= {"tflite/table", "tflite/offset"}
        assert rules_of(bytes(data))


def test_text_that_is_not_utf8_or_too_long():
    refused(model(codes=(table(s0=32, s1=text(b"\xff")),)), "tflite/encoding")
    refused(model(codes=(table(s0=32, s1=text("x" * (flatbuffer.MAX_TEXT_BYTES + 1))),)), "tflite/limit")


def test_lists_that_are_read_again_and_again():
    """Many operators over one long list: a small file that takes long."""
    long = (0,) * 100_000

    def build(times: int) -> bytes:
        place: list[int] = []

        def operators(out: bytearray) -> int:
            at = len(out)
            out.extend(pack("<I", times) + bytes(4 * times))
            spots = []
            for index in range(times):
                listed = len(out)
                out.extend(pack("<HHHH", 8, 8, 0, 4))
                pack_into("<I", out, at + 4 + 4 * index, len(out) - at - 4 - 4 * index)
                spots.append(len(out) + 4)
                out.extend(pack("<iI", len(out) - listed, 0))
            place.append(numbers("i", *long)(out))
            for spot in spots:
                pack_into("<I", out, spot, place[0] - spot)
            return at

        graph = table(s0=tables(tensor()), s1=numbers("i"), s2=numbers("i"), s3=operators)
        return model(graphs=(graph,))

    fits = flatbuffer.MAX_VECTOR_BYTES // 400_000
    assert rules_of(build(fits - 1)) == set()
    refused(build(fits + 1), "tflite/limit")
