"""Join what `collect.py` printed for several versions of one library into the table that the package ships.

`python merge.py OUT.json COLLECTED.json ...`: a class that changed its kind between versions keeps the first of native,
object, mapping, tuple, enum and function that any version gave it, so that a special class is never a plain one.
"""

import json
import sys
from pathlib import Path

ORDER = ("native", "unpickle", "object", "mapping", "tuple", "enum", "function")


def merge(parts: list[dict]) -> dict:
    kind_of: dict[tuple[str, str], str] = {}
    for part in parts:
        for kind, modules in part["kinds"].items():
            for module, names in modules.items():
                for name in names:
                    held = kind_of.setdefault((module, name), kind)
                    kind_of[module, name] = min(held, kind, key=ORDER.index)
    kinds: dict[str, dict[str, list[str]]] = {}
    for (module, name), kind in sorted(kind_of.items()):
        kinds.setdefault(kind, {}).setdefault(module, []).append(name)
    return {
        "library": parts[0]["library"],
        "versions": sorted(
            {part["version"] for part in parts}, key=lambda v: [int(n) for n in v.split(".")[:3]]
        ),
        "made": max(part["made"] for part in parts),
        "source": "recipes/pickle_names",
        "kinds": {kind: kinds[kind] for kind in ORDER if kind in kinds},
    }


if __name__ == "__main__":
    out, *collected = map(Path, sys.argv[1:])
    table = merge([json.loads(path.read_text()) for path in collected])
    out.write_text(json.dumps(table, indent=1) + "\n")
