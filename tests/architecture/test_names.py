"""Names that hide what a module is for stay out of the tree."""

import re
from pathlib import Path

import steelyard

VAGUE = re.compile(r"utils?|helpers?|common|manager|handler|processor|misc|v2|legacy")


def test_no_module_is_called_a_drawer():
    root = Path(steelyard.__file__).parent
    names = [path.stem for path in root.rglob("*.py")]
    assert len(names) > 20
    assert [name for name in names if VAGUE.fullmatch(name)] == []
