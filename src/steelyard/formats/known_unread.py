"""Model formats that are recognised and not read: a clear refusal instead of "nobody claims it".

Each is claimed by its magic bytes; those without one by the name that their own loader asks for. Sources of the
magic bytes: the loaders of each project, named in docs/formats/known-unread.md.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.protobuf import LENGTH, VARINT, outline

_EXPORT = "Export the model as safetensors or ONNX and admit that."


class _Kind(NamedTuple):
    """One format. starts: (offset, bytes) of which one must match.  ends: names it is known by when it has no magic."""

    rule: str
    label: str
    attack: str
    starts: tuple[tuple[int, bytes], ...] = ()
    ends: tuple[str, ...] = ()
    mend: str = _EXPORT


_COMPILED = "A program compiled for one device, which nobody reads before it runs."
_KINDS: Final = (
    _Kind("torch7", "Torch7", "Lua functions inside the file, which Torch7 runs when it loads it.",
          ((0, b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1"), (0, b"4\n1\n3\nV 1\n"), (0, b"\x03\0\0\0\x01\0\0\0")), (".t7",)),
    _Kind("mxnet", "MXNet parameters", "Parameters whose network may name a library to load.",
          ((0, b"\x12\x01" + b"\0" * 14),)),
    _Kind("coreml", "Core ML", "Custom layers and models that name classes of the app that loads them.", (),
          (".mlmodel",), "Admit the model it was converted from, and convert it after admission."),
    _Kind("paddle", "PaddlePaddle", "Operators that call Python or read files.", (),
          (".pdmodel", ".pdiparams", "__model__"), "Export the model with paddle2onnx and admit that."),
    _Kind("catboost", "CatBoost", "A model that nobody reads before it is loaded.", ((0, b"CBM1"),), (".cbm",),
          "Export the model as ONNX (save_model(..., format='onnx')) and admit that."),
    _Kind("ort", "ONNX Runtime's own format", _COMPILED, ((4, b"ORTM"),), (), "Admit the ONNX model it was made from."),
    _Kind("executorch", "ExecuTorch", _COMPILED, ((4, b"ET12"), (4, b"ET13")), (".pte",)),
    _Kind("tensorrt", "TensorRT engine", _COMPILED, ((0, b"ftrt"), (0, b"ptrt")), (".engine", ".plan"),
          "Admit the ONNX model it was made from."),
    _Kind("rknn", "RKNN", _COMPILED, ((0, b"RKNN"),), (".rknn",), "Admit the ONNX model it was made from."),
    _Kind("ggml", "GGML before GGUF", "A file without lengths to check.",
          ((0, b"lmgg"), (0, b"tjgg"), (0, b"fmgg"), (0, b"algg")), (), "Convert the model to GGUF."),
    _Kind("ncnn", "ncnn", "Custom layers that need native code.", ((0, b"7767517\n"),), ()),
    _Kind("darknet", "Darknet", "Weights without shapes, whose network stands elsewhere.", ((0, b"[net]\n"),),
          (".weights",)),
    _Kind("cntk", "CNTK", "Operators that need native code.", ((0, b"B\0C\0N\0T\0K\0"),), (".dnn",)),
    _Kind("caffe", "Caffe", "Python layers named in the network.", (), (".caffemodel", ".prototxt")),
    _Kind("pbtxt", "A protocol buffer as text", "A graph that is read by another parser than its binary form.", (),
          (".pbtxt", ".pbtext"), "Store the graph in binary form."),
)  # fmt: skip

RULES: Mapping[str, Rule] = {f"unread/{kind.rule}": Rule(kind.attack, kind.mend) for kind in _KINDS}


# An MXNet network: a list of nodes, each with its operator.
NETWORK_START: Final = re.compile(rb'\s*\{\s*"nodes"\s*:\s*\[\s*\{[^{}]{0,400}"op"\s*:')


def _is_core_ml(head: bytes) -> bool:
    """A version, a description, and a model under a number from 200."""
    fields = outline(head)
    return (
        len(fields) > 1
        and (fields[0].number, fields[0].wire) == (1, VARINT)
        and (fields[1].number, fields[1].wire) == (2, LENGTH)
        and any(found.number >= 200 and found.wire == LENGTH for found in fields[2:])
    )


def _kind_of(head: bytes, path: str) -> _Kind | None:
    base = path.rpartition("/")[2].lower()
    for kind in _KINDS:
        if any(head[at : at + len(magic)] == magic for at, magic in kind.starts):
            return kind
    for kind in _KINDS:
        if kind.rule == "coreml" and _is_core_ml(head):
            return kind
        if kind.rule == "mxnet" and NETWORK_START.match(head):
            return kind
        if base.endswith(kind.ends) and not _is_other(head):
            return kind
    return None


def _is_other(head: bytes) -> bool:
    """What other formats claim by content whatever its name: a pickle, an archive, HDF5, a flat buffer."""
    return (
        (head[:1] == b"\x80" and head[1:2] in b"\x01\x02\x03\x04\x05")
        or head.startswith(
            (b"PK", b"\x89HDF", b"\x7fELF", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"GGUF")
        )
        or head[4:8] == b"TFL3"
    )


class KnownUnreadFormat:
    """The plug of `steelyard.formats`."""

    name = "known-unread"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        return _kind_of(head, path) is not None

    def read(self, source: ByteSource, path: str) -> Report:
        kind = _kind_of(source.read(0, min(source.size, 4096)), path)
        if kind is None:
            raise ValueError("read without a claim")
        what = f"a file of {kind.label}, which is recognised and not read"
        return Report(self.name, {"kind": kind.label}, (Finding(f"unread/{kind.rule}", what, 0),))


FORMAT = KnownUnreadFormat()
