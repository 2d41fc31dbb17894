"""Seeds by format, and the endless, reproducible row of their mutants."""

import random
from collections.abc import Iterator, Mapping, Sequence

from fuzz.mutate import mutant
from fuzz.seeds import Seed, all_seeds
from steelyard.formats.base import BytesSource
from steelyard.formats.registry import Registry

FOREIGN = 0.2  # of all mutants borrow parts from seeds of any format, the others from their own


def seeds_by_format(registry: Registry) -> Mapping[str, tuple[Seed, ...]]:
    """All seeds under the name of the format that reads them; "unknown" are those that no format claims."""
    found: dict[str, list[Seed]] = {}
    for seed in all_seeds():
        report = registry.read(BytesSource(seed.data), seed.name)
        found.setdefault(report.format, []).append(seed)
    return {name: tuple(seeds) for name, seeds in sorted(found.items())}


def mutants(seeds: Mapping[str, Sequence[Seed]], name: str, seed: int) -> Iterator[Seed]:
    """Damaged files of the format `name`, for ever; the same arguments give the same files."""
    rng = random.Random(f"{seed}/{name}")
    own = seeds[name]
    near = [each.data for each in own]
    far = [each.data for all_of_one in seeds.values() for each in all_of_one]
    while True:
        chosen = rng.choice(own)
        others = far if rng.random() < FOREIGN else near
        yield Seed(chosen.name, mutant(chosen.data, rng, others))
