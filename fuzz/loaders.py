"""What the real libraries read from a file that we admitted: names, types, shapes. Bytes of weights stay unread.

Each check gives a sentence when the library refuses the file or sees something else, and None when both agree.
"""

import ast
import io
import json
import pickletools
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import safetensors

from steelyard.formats import gguf_header
from steelyard.formats import safetensors as ours
from steelyard.formats.base import BytesSource
from steelyard.formats.pickle_machine import run
from steelyard.formats.zipped import read_archive

Check = Callable[[bytes], str | None]

# From the dtype's name in a header to what `safetensors.deserialize` calls it: the same word.
JSON_FORMATS = ("json", "hf-config", "keras-config", "signature", "skops-schema")
ZIP_FORMATS = ("zip", "torch-zip", "torchscript", "keras-zip", "skops", "npz", "torch-pt2", "nemo")


def _differs(theirs: object, mine: object) -> str | None:
    return None if theirs == mine else f"the library reads {theirs!r:.300}, we read {mine!r:.300}"


def safetensors_header(data: bytes) -> str | None:
    theirs = [
        (name, str(entry["dtype"]), tuple(entry["shape"]))
        for name, entry in safetensors.deserialize(data)  # type: ignore[no-untyped-call]  # compiled
    ]
    header = ours.header_of(BytesSource(data))
    return _differs(sorted(theirs), sorted((t.name, t.dtype, tuple(t.shape)) for t in header.tensors))


def gguf_tensors(data: bytes) -> str | None:
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        Path(file.name).write_bytes(data)
        reader = gguf.GGUFReader(file.name)
        theirs = [(t.name, t.tensor_type.name, tuple(map(int, t.shape))) for t in reader.tensors]
    header = gguf_header.header_of(BytesSource(data))
    return _differs(theirs, [(t.name, t.type.name, tuple(t.shape)) for t in header.tensors])


def zip_members(data: bytes) -> str | None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        broken = archive.testzip()
        if broken is not None:
            return f"zipfile finds {broken!a} damaged"
        theirs = [info.filename for info in archive.infolist()]
    return _differs(sorted(theirs), sorted(m.name for m in read_archive(BytesSource(data)).members))


def npy_header(data: bytes) -> str | None:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        size = int.from_bytes(file.read(4), "little")
        header = ast.literal_eval(file.read(size).decode())
        shape, dtype = header["shape"], np.dtype(header["descr"])
    if dtype.hasobject:
        return "numpy sees an array of objects"
    needed = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
    return None if needed == len(data) else f"numpy needs {needed} bytes, the file has {len(data)}"


def json_text(data: bytes) -> str | None:
    json.loads(data)
    return None


def pickle_opcodes(data: bytes) -> str | None:
    steps = list(pickletools.genops(data))
    name, _, at = steps[-1]
    if name.name != "STOP" or at is None or at + 1 != len(data):
        return f"pickletools ends with {name.name} at {at} of {len(data)}"
    outcome = run(BytesSource(data))
    return _differs((len(steps), len(data)), (outcome.opcodes, outcome.end))


LOADERS: Mapping[str, Check] = {
    "safetensors": safetensors_header,
    "gguf": gguf_tensors,
    "npy": npy_header,
    "pickle": pickle_opcodes,
    **dict.fromkeys(JSON_FORMATS, json_text),
    **dict.fromkeys(ZIP_FORMATS, zip_members),
}
