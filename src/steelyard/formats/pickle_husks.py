"""What the pickle machine lets go of, so that no file makes it hold more than a few tens of megabytes.

The memo of a large file has millions of entries that are never read again, and containers inside containers keep items
that no rule asks for. A husk stands in for such an object: kind, weight and depth of the object it replaces, rounded up
to a power of two so that a few husks serve millions, and nothing of its contents. A rule that needs the contents
refuses a husk as it refuses a container too long to keep. A husk never changes, so an object that still stands on the
stack, and may be filled, is never replaced.
"""

from collections.abc import Iterable, Sequence

from steelyard.formats.pickle_values import TEXT, Blob, Global, Husk, Node, Token, Value

MAX_HUSKS = 20_000
KEPT_BYTES_BUDGET = 24 << 20  # of contents, estimated, after letting go
LEVELS = (4, 3, 2, 1)  # containers inside containers whose contents stay, most first
MEMO_FRONT = (
    50_000  # entries at the beginning of the memo stay as they are: module names, types, small shapes
)
LONG_FRAME = 4096  # objects above one MARK; those of a longer run are only counted
FRAME_FRONT = 512
FRONT_TUPLE_BYTES = 512


class TooMany(Exception):
    """The objects of a file have more different shapes than a summary can hold."""


class Husks:
    """Stand-ins, one for each shape of object."""

    def __init__(self) -> None:
        self._made: dict[object, Husk] = {}

    def instead_of(self, value: Value) -> Value:
        """What may stand for `value` once nobody needs its contents. Raises TooMany."""
        if isinstance(value, Token | Husk):
            return value
        if isinstance(value, str):
            return TEXT
        if isinstance(value, tuple):
            return self._husk("tuple", None, None, len(value) + 1, 2, len(value))
        if isinstance(value, bytes):
            return Blob("bytes", len(value))
        if not isinstance(value, Node) or value.carries:
            return value
        fact = value.fact if isinstance(value.fact, str | int | None) else None
        count = 1 << value.count.bit_length() if value.count else 0
        return self._husk(value.kind, value.made_by, fact, value.weight, value.depth, count)

    def _husk(
        self, kind: str, made_by: Global | None, fact: object, weight: int, depth: int, count: int
    ) -> Node:
        rounded = 1 << (weight - 1).bit_length() if weight > 1 else 1
        key = (kind, made_by, fact, rounded, depth, count)
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= MAX_HUSKS:
                raise TooMany
            found = self._made[key] = Husk()
            found.kind, found.weight, found.depth, found.count = kind, rounded, depth, count
            found.made_by, found.fact, found.held = made_by, fact, True
        return found


def shrink(husks: Husks, memo: list[Value], begun: int, frames: Sequence[list[Value]]) -> int:
    """Replace memo entries from `begun` on and the middle of long frames, drop contents beyond the budget.

    Returns estimated bytes of contents that are still held. Raises TooMany.
    """
    standing = {id(item) for frame in frames for item in frame if isinstance(item, Node)}
    for index in range(begun, len(memo)):
        value = memo[index]
        if index < MEMO_FRONT and not (isinstance(value, tuple) and _bytes_of(value) > FRONT_TUPLE_BYTES):
            continue
        if id(value) not in standing:
            memo[index] = husks.instead_of(value)
    for frame in frames:
        if len(frame) > LONG_FRAME:
            frame[FRAME_FRONT:-1] = [husks.instead_of(item) for item in frame[FRAME_FRONT:-1]]
    roots = [item for frame in frames for item in frame if isinstance(item, Node)]
    roots += [item for item in memo[:MEMO_FRONT] if isinstance(item, Node)]
    held = 0
    for levels in LEVELS:
        held = _hold_levels(roots, levels)
        if held <= KEPT_BYTES_BUDGET:
            break
    return held


def _hold_levels(roots: Iterable[Node], levels: int) -> int:
    """Drop what lies deeper than `levels` containers below `roots`; the estimated bytes of the rest."""
    total = 0
    level = {id(node): node for node in roots}
    for _ in range(levels):
        below: dict[int, Node] = {}
        for node in level.values():
            for item in node.kept or ():
                total += _bytes_of(item)
                if isinstance(item, Node):
                    below[id(item)] = item
        level = below
    for node in level.values():
        node.kept = None
    return total


def _bytes_of(value: Value) -> int:
    if isinstance(value, str | bytes):
        return 64 + len(value)
    if isinstance(value, tuple):
        return 64 + sum(map(_bytes_of, value))
    return 96 if isinstance(value, Node) else 16
