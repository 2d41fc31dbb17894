"""Runs of pickle opcodes that repeat a shape: learned once, then matched whole instead of opcode by opcode.

A list of a million records is a million times the same opcodes with other numbers and words in them. `learn` turns the
bytes of one such record, which the machine has just followed and found nothing against, into a regular expression:

    numbers, None, True, False      any of them
    short ASCII text                any short ASCII text, memoised as this one was
    BINGET of a scalar              BINGET of any scalar the memo has among its first 256
    everything else                 the same byte

So whatever matches has the same shape, holds scalars where the learned one held scalars, and leaves the same number of
memo entries. It cannot import, call or nest deeper. LONG_BINPUT numbers are captured, for the machine to compare.
The contents are not kept: a rule that asks for them refuses, as for any container too large to keep.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from steelyard.formats.pickle_values import LEAVES, TEXT, DictNode, ListNode, Node, Value, node_of

MAX_BYTES = 4096  # of one learned run
MAX_STEPS = 128  # opcodes of one learned run
MAX_TEXTS = 16  # each is an alternation over lengths, slow to compile
MAX_LETTERS = 27  # longer text may be an encoded pickle, which the machine looks into
LONG_BINGET, BINGET, MEMOIZE, LONG_BINPUT = 0x6A, 0x68, 0x94, 0x72

_SCALAR = rb"(?:K.|M..|J.{4}|G.{8}|[N\x88\x89])"
_SCALAR_BYTES = {0x4B: 2, 0x4D: 3, 0x4A: 5, 0x47: 9, 0x4E: 1, 0x88: 1, 0x89: 1}


def _texts(opcode: bytes, padding: bytes) -> bytes:
    """ASCII text that does not end with a full stop, which is how a pickle would end."""
    longer = (
        re.escape(bytes([size])) + padding + b"[\\x00-\\x7f]{%d}[\\x00-\\x2d\\x2f-\\x7f]" % (size - 1)
        for size in range(1, MAX_LETTERS + 1)
    )
    return opcode + b"(?:" + b"|".join(longer) + b")"


_SHORT_TEXT = _texts(b"\\x8c", b"")
_TEXT = _texts(b"X", b"\\x00\\x00\\x00")
_NEXT = rb"(?=[}\]eu\x8cXhjKMJGN\x88\x89])"  # the container is whole: it becomes an item of another


@dataclass(slots=True)
class Echo:
    """One learned shape. steps: opcodes. entries: what it leaves in the memo. result: what it leaves on the stack."""

    matches: "re.Pattern[bytes]"
    steps: int
    entries: list[Value]
    numbered: bool
    result: Node
    score: int = 8


@dataclass(slots=True)
class _Shape:
    """The symbols of the learned run, without their contents."""

    parts: list[bytes] = field(default_factory=list)
    stack: list[Value] = field(default_factory=list)
    meta: list[list[Value]] = field(default_factory=list)
    entries: list[Value] = field(default_factory=list)
    steps: int = 0
    numbered: int = 0
    texts: int = 0


def learn(run: bytes, memo: Sequence[Value]) -> Echo | None:
    """The shape of `run`, opcodes that begin with EMPTY_DICT or EMPTY_LIST and leave that one object behind.

    memo: what BINGET reads. None for a run with any opcode beyond those of plain records.
    """
    if len(run) > MAX_BYTES or len(memo) < 256:
        return None
    shape = _Shape()
    leaf = b"h[" + b"".join(b"\\x%02x" % at for at in range(256) if type(memo[at]) in LEAVES) + b"]"
    if leaf == b"h[]":
        return None
    at = 0
    while at < len(run):
        size = _step(shape, run, at, leaf)
        if not size or shape.steps > MAX_STEPS or shape.texts > MAX_TEXTS:
            return None
        at += size
    if at != len(run) or len(shape.stack) != 1 or shape.meta or not isinstance(shape.stack[0], Node):
        return None
    if shape.numbered not in {0, len(shape.entries)}:
        return None
    pattern = re.compile(b"".join(shape.parts) + _NEXT, re.DOTALL)
    return Echo(pattern, shape.steps, shape.entries, shape.numbered > 0, shape.stack[0])


def _step(shape: _Shape, run: bytes, at: int, leaf: bytes) -> int:
    """Add one opcode. Returns its bytes, 0 for one that is not part of a plain record."""
    op = run[at]
    shape.steps += 1
    if op in _SCALAR_BYTES:
        shape.parts.append(_SCALAR)
        shape.stack.append(None)
        return _SCALAR_BYTES[op]
    if op == BINGET:
        shape.parts.append(leaf)
        shape.stack.append(None)
        return 2 if re.fullmatch(leaf, run[at : at + 2], re.DOTALL) else 0
    if op in {0x8C, 0x58}:
        pattern = _SHORT_TEXT if op == 0x8C else _TEXT
        found = re.compile(pattern, re.DOTALL).match(run, at)
        shape.parts.append(pattern)
        shape.stack.append(TEXT)
        shape.texts += 1
        return len(found[0]) if found else 0
    if op == MEMOIZE and shape.stack:
        shape.parts.append(b"\x94")
        shape.entries.append(shape.stack[-1])
        return 1
    if op == LONG_BINPUT and shape.stack:
        shape.parts.append(b"r(.{4})")
        shape.numbered += 1
        shape.entries.append(shape.stack[-1])
        return 5
    return _build(shape, op)


def _build(shape: _Shape, op: int) -> int:
    stack = shape.stack
    shape.parts.append(re.escape(bytes([op])))
    if op in {0x7D, 0x5D}:
        stack.append(_whole(DictNode() if op == 0x7D else ListNode()))
    elif op == 0x28:
        shape.meta.append(stack)
        shape.stack = []
    elif op in {0x65, 0x75} and shape.meta and shape.meta[-1]:
        shape.stack = shape.meta.pop()
        target = shape.stack[-1]
        if not isinstance(target, Node) or target.count or (op == 0x75 and len(stack) % 2):
            return 0
        if target.kind != ("list" if op == 0x65 else "dict"):
            return 0
        _fill(target, stack)
    elif op in {0x85, 0x86, 0x87} and len(stack) >= op - 0x84:
        node = _whole(node_of("tuple"))
        _fill(node, stack[0x84 - op :])
        stack[0x84 - op :] = [node]
    else:
        return 0
    return 1


def _whole(node: Node) -> Node:
    node.held = True
    return node


def _fill(node: Node, items: Sequence[Value]) -> None:
    """Count without keeping."""
    nodes = [item for item in items if isinstance(item, Node)]
    node.count += len(items)
    node.weight += len(items) + sum(item.weight - 1 for item in nodes)
    node.depth = max(node.depth, 1 + max((item.depth for item in nodes), default=0))
