"""The globals a pickle may name, and the shape each call must have.

Default-deny: exact (module, name) pairs, no prefixes, no wildcards. Three tiers: T0 tensors (`pickled_torch`,
`pickled_numpy`), T1 plain data (`pickled_plain`), T2 estimators and tables of data (`pickled_tables`), whose names
were read from the libraries themselves and lie in `data/pickles/`. The last are loaded when a file first names one.
"""

from collections.abc import Mapping

from steelyard.formats.pickle_values import Spec
from steelyard.formats.pickled_numpy import NUMPY
from steelyard.formats.pickled_plain import MAX_KEY_WEIGHT, PLAIN
from steelyard.formats.pickled_shapes import fit, items_of
from steelyard.formats.pickled_tables import table_of
from steelyard.formats.pickled_torch import DEVICE, ELEMENT_BYTES, STORAGE_DTYPES, TENSORS, TORCH, Storage
from steelyard.formats.pickled_torch_modules import MODULES

__all__ = [
    "ALLOWED", "DEVICE", "ELEMENT_BYTES", "MAX_KEY_WEIGHT", "STORAGE_DTYPES", "TENSORS", "Storage", "fit", "items_of",
    "listed",
]  # fmt: skip

# Keyed by (module, name): the class sits in the last part, so "a.b" + "c" never equals "a" + "b.c".
ALLOWED: Mapping[tuple[str, str], Spec] = {
    (full.rpartition(".")[0], full.rpartition(".")[2]): spec
    for full, spec in {**PLAIN, **NUMPY, **TORCH}.items()
    if full != "zoneinfo.ZoneInfo._unpickle"
} | {("zoneinfo", "ZoneInfo._unpickle"): PLAIN["zoneinfo.ZoneInfo._unpickle"], **MODULES}


def listed(module: str, name: str) -> Spec | None:
    """The rule for a global, or None for one that no tier lists."""
    return ALLOWED.get((module, name)) or table_of(module).get((module, name))
