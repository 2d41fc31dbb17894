"""Writes plain.7z, whose header is not packed. Run with py7zr 1.x: `python tests/data/archives/make.py`."""

from pathlib import Path

import py7zr

HERE = Path(__file__).parent

with py7zr.SevenZipFile(HERE / "plain.7z", "w") as archive:
    archive.set_encoded_header_mode(False)
    archive.writestr("hello", "model.pkl")
    archive.writestr("world", "folder/notes.md")
