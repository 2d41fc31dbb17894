"""The fuzzer lives beside the package, not in it: its folder is put where it can be imported from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
