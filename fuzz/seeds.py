"""Small valid files of every format: those under tests/data, and those a few lines of code can write."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
MAX_SEED_BYTES = 32 << 10

VALUE = {
    "weight": [1, 2.5, None, True],
    "name": "layer",
    "shape": (3, 4),
    "raw": b"\0\x01",
    "deep": [[["x"]]],
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
}
TOKENIZER: Mapping[str, object] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "unk_token": None},
}
INDEX = {
    "metadata": {"total_size": 8},
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message.content | trim }}\n"
    "{% if loop.last and add_generation_prompt %}<|assistant|>{% endif %}{% endfor %}"
)
CODE = "import numpy as np\n\n\ndef mean(values: list[float]) -> float:\n    return float(np.mean(values))\n"
MLMODEL = """artifact_path: model
flavors:
  python_function:
    loader_module: mlflow.sklearn
    model_path: model.pkl
    python_version: 3.11.7
  sklearn:
    pickled_model: model.pkl
    serialization_format: pickle
mlflow_version: 2.19.0
model_uuid: 0123456789abcdef0123456789abcdef
"""
PMML = """<?xml version="1.0"?>
<PMML version="4.4" xmlns="http://www.dmg.org/PMML-4_4"><Header/>
<DataDictionary><DataField name="x" optype="continuous" dataType="double"/></DataDictionary></PMML>
"""
BUNDLE = {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "verificationMaterial": {}}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"><rect width="2" height="2"/></svg>'


@dataclass(frozen=True, slots=True)
class Seed:
    """One valid file and the name that its format sees."""

    name: str
    data: bytes


def all_seeds() -> tuple[Seed, ...]:
    """Every seed in a fixed order."""
    return (*_stored(), *(Seed(name, data) for name, data in sorted(_written().items())))


def _stored() -> Iterator[Seed]:
    for path in sorted(DATA.rglob("*")):
        if (
            path.is_file()
            and path.suffix not in {".py", ".R", ".pyc"}
            and path.stat().st_size <= MAX_SEED_BYTES
        ):
            yield Seed(path.relative_to(DATA).as_posix(), path.read_bytes())


def _written() -> Mapping[str, bytes]:
    pickled = pickle.dumps(VALUE, 4)
    texts = {
        "plain.json": json.dumps({"a": [1, -2.5e3, None, True], "ä": "\n"}, ensure_ascii=False),
        "config.json": json.dumps(CONFIG, indent=2),
        "tokenizer.json": json.dumps(TOKENIZER),
        "model.safetensors.index.json": json.dumps(INDEX),
        "chat_template.jinja": TEMPLATE,
        "modeling.py": CODE,
        "README.md": "# A model\n\nIt adds numbers. See `config.json`.\n",
        "MLmodel": MLMODEL,
        "model.pmml": PMML,
        "model.sig": json.dumps(BUNDLE),
        "picture.svg": SVG,
    }
    return {
        **{name: text.encode() for name, text in texts.items()},
        "model.safetensors": _safetensors(),
        "model.gguf": _gguf(),
        "tokenizer.model": _sentencepiece(),
        "array.npy": _npy(np.arange(12, dtype="<f4").reshape(3, 4)),
        "structured.npy": _npy(np.zeros(2, dtype=[("a", "<i4"), ("b", "<f8", (2,))])),
        "arrays.npz": _zip({"a.npy": _npy(np.arange(3)), "b.npy": _npy(np.ones((2, 2)))}, zipfile.ZIP_STORED),
        "packed.npz": _zip({"a.npy": _npy(np.arange(64))}, zipfile.ZIP_DEFLATED),
        "files.zip": _zip(
            {"config.json": texts["config.json"].encode(), "a/b.json": b"[1]"}, zipfile.ZIP_DEFLATED
        ),
        "pickle.zip": _zip({"model.pkl": pickled}, zipfile.ZIP_STORED),
        "files.tar": _tar({"config.json": texts["config.json"].encode(), "model.pkl": pickled}),
        "files.tar.gz": gzip.compress(_tar({"a.json": b"[1, 2]"}), mtime=0),
        "value.pkl.gz": gzip.compress(pickled, mtime=0),
        "value.pkl.z": zlib.compress(pickled),
        "value.pkl.bz2": bz2.compress(pickled),
        "value.pkl.xz": lzma.compress(pickled),
        **{f"value.p{number}.pkl": pickle.dumps(VALUE, number) for number in range(6)},
        "schema.json": _skops_schema(),
        "model.cbm": b"CBM1" + bytes(16),
        "picture.png": _png(),
        "picture.gif": b"GIF89a\x01\x00\x01\x00\x80\x00\x00"
        + bytes(6)
        + b"\x2c"
        + bytes(8)
        + b"\x00\x02\x02\x4c\x01\x00\x3b",
        "picture.jpg": b"\xff\xd8\xff\xe0\x00\x04ab\xff\xda\x00\x04\x01\x02data\xff\x00more\xff\xd3x\xff\xd9",
    }


def _safetensors() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "empty": {"dtype": "I8", "shape": [0], "data_offsets": [32, 32]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(range(32))


def _gguf() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 1),
        text("llama.flag") + struct.pack("<I?", 7, True),
        text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2"),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
    ]
    tensors = [
        text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0),
        text("output_norm.weight") + struct.pack("<IQIQ", 1, 4, 0, 32),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys + tensors)
    return head + bytes(-len(head) % 32) + bytes(range(32)) + bytes(32)


def _sentencepiece() -> bytes:
    def piece(text: str, score: float, kind: int) -> bytes:
        body = (
            b"\x0a"
            + bytes([len(text)])
            + text.encode()
            + b"\x15"
            + struct.pack("<f", score)
            + b"\x18"
            + bytes([kind])
        )
        return b"\x0a" + bytes([len(body)]) + body

    pieces = (
        piece("<unk>", 0, 2)
        + piece("<s>", 0, 3)
        + piece("</s>", 0, 3)
        + piece("a", -1, 1)
        + piece("b", -2, 1)
    )
    return (
        pieces + b"\x12\x02\x18\x01" + b"\x1a\x0a\x0a\x08identity"
    )  # trainer_spec: unigram; normalizer_spec: its name


def _skops_schema() -> bytes:
    with zipfile.ZipFile(DATA / "skops" / "sparse.skops") as archive:
        return archive.read("schema.json")


def _npy(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def _zip(members: Mapping[str, bytes], method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, data)
    return out.getvalue()


def _tar(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
