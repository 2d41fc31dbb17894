"""Writes the honest OpenVINO files of this folder.

Made on 2026-11-23 with openvino 2026 (Python 3.11) from tests/data/onnx: python make.py ONNX_FOLDER
"""

import re
import sys
from pathlib import Path

import openvino

for name in ("plain", "quantised", "typed_int4"):
    path = Path(f"{name}.xml")
    openvino.save_model(openvino.convert_model(Path(sys.argv[1], f"{name}.onnx")), path)
    text = path.read_text()
    path.write_text(
        re.sub(r'(<input_model value=")[^"]*', rf"\g<1>{name}.onnx", text)
    )  # no path of this machine
