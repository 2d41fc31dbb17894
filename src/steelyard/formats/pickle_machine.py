"""A pickle virtual machine that moves symbols and never builds, imports or calls anything.

Stack, mark, memo and frame follow CPython's two unpicklers; where the C and the Python one differ the file is
refused (`pickle/noncanonical`, `pickle/frame`). Opcodes: protocols 0 to 5, PEP 307, PEP 3154, PEP 574.

Every REDUCE, BUILD, NEWOBJ, INST and OBJ is a finding unless the allow-list (`pickled_globals`) names both the
callable and the shape of its arguments. A finding does not stop the run, so one report shows the whole chain;
broken structure does.

`_loop` is one long function on purpose: it runs once for each opcode, and a call for each costs twice the work.
The file is long because all opcodes share the same stack, memo and window; a part of them has no meaning alone.
"""

import codecs
import contextlib
import gc
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from steelyard.formats.base import ByteSource, BytesSource, Finding
from steelyard.formats.pickle_echo import Echo, learn
from steelyard.formats.pickle_husks import KEPT_BYTES_BUDGET, Husks, TooMany, shrink
from steelyard.formats.pickle_nested import TEXT_BEGINS, may_be_pickle, pickles_in_text
from steelyard.formats.pickle_values import (
    FLOAT,
    LEAVES,
    LONG,
    QUIET,
    SCALARS,
    TEXT,
    UNSET,
    Blob,
    Carrier,
    DictNode,
    Global,
    Inline,
    ListNode,
    Misfit,
    Node,
    Spec,
    Token,
    Unset,
    Value,
    node_of,
    render,
    render_call,
)
from steelyard.formats.pickled_globals import MAX_KEY_WEIGHT, TENSORS, items_of, listed

MAX_OPCODES = 64_000_000
MAX_MEMO = 8_000_000
MAX_STACK = 500_000
MAX_MARKS = 10_000
MAX_DISCARDED = 200_000  # POP, POP_MARK and DUP: honest picklers write one for each tuple that holds itself
SHRINK_EVERY = 1 << 20  # bytes of the file
SHRINK_STACK = 100_000  # stack entries, then twice as many each time
MAX_ATOMS = 1000  # memo entries for numbers, None, True and False, in one stretch
DULL_SAMPLE = 1 << 13
DULL_RATIO = 100
MAX_DULL_BYTES = 4 << 20  # of windows whose beginning deflates by more than DULL_RATIO
FIRST_LESSON = 64  # containers followed before a shape is learned; after a miss twice as many
LAST_LESSON = FIRST_LESSON << 12
MAX_GAP = 1024  # memo numbers a PUT may skip
MAX_DEPTH = 256
SMALL_TUPLE = 16  # longer tuples of scalars are counted item by item
MAX_LINE = 1 << 24  # bytes of one text argument; protocol 0 writes whole strings on a line
MAX_NAME = 512
MAX_INTEGER_BYTES = 4096
MAX_INTEGER_DIGITS = 4300
MAX_NESTED = 3  # pickles inside bytes inside pickles
MIN_INSIDE = 4  # opcodes of a pickle of plain data that is no accident of a few bytes
MAX_NESTED_TEXT = 1 << 20
MAX_INNER_BYTES = 1 << 28  # of all the pickles found inside one
MAX_FINDINGS = 64
UNFOLDING = 64  # nodes a value may unfold to, for each opcode read
UNFOLDING_FLOOR = 1_000_000
KEPT_TEXT = 128  # longer text is no name and is left in the file
KEPT_BYTES = 64
SHORT_TEXT = 27  # shorter than any encoded pickle that calls something
WINDOW = 1 << 18
SLACK = 1 << 16  # a window ends this early, so that any short argument lies inside it
PADDING = bytes(16)

MAPPINGS = frozenset({"dict", "OrderedDict", "Counter", "defaultdict", "mapping", "unknown"})
COMPUTED = frozenset({"unknown", "computed"})
SEQUENCES = frozenset({"list", "deque", "unknown"})
UNHASHABLE = frozenset(
    {"list", "dict", "set", "OrderedDict", "Counter", "defaultdict", "deque", "ndarray", "mapping"}
)
LEGACY_MODULES: Mapping[str, str] = {"__builtin__": "builtins", "copy_reg": "copyreg"}
LEGACY_NAMES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("__builtin__", "xrange"): ("builtins", "range"),
    ("__builtin__", "long"): ("builtins", "int"),
    ("__builtin__", "unicode"): ("builtins", "str"),
}
CANONICAL_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")
CANONICAL_FLOAT = re.compile(rb"-?([0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?|inf|nan)")
CANONICAL_INDEX = re.compile(rb"0|[1-9][0-9]{0,9}")
ESCAPES = re.compile(rb"(?:[^\\\x80-\xff]|\\(?:[\\'\"abfnrtv0]|x[0-9a-fA-F]{2}))*")

OPCODES: Mapping[int, str] = {
    0x28: "MARK", 0x2E: "STOP", 0x30: "POP", 0x31: "POP_MARK", 0x32: "DUP", 0x46: "FLOAT", 0x49: "INT",
    0x4A: "BININT", 0x4B: "BININT1", 0x4C: "LONG", 0x4D: "BININT2", 0x4E: "NONE", 0x50: "PERSID",
    0x51: "BINPERSID", 0x52: "REDUCE", 0x53: "STRING", 0x54: "BINSTRING", 0x55: "SHORT_BINSTRING",
    0x56: "UNICODE", 0x58: "BINUNICODE", 0x61: "APPEND", 0x62: "BUILD", 0x63: "GLOBAL", 0x64: "DICT",
    0x7D: "EMPTY_DICT", 0x65: "APPENDS", 0x67: "GET", 0x68: "BINGET", 0x69: "INST", 0x6A: "LONG_BINGET",
    0x6C: "LIST", 0x5D: "EMPTY_LIST", 0x6F: "OBJ", 0x70: "PUT", 0x71: "BINPUT", 0x72: "LONG_BINPUT",
    0x73: "SETITEM", 0x74: "TUPLE", 0x29: "EMPTY_TUPLE", 0x75: "SETITEMS", 0x47: "BINFLOAT", 0x80: "PROTO",
    0x81: "NEWOBJ", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x85: "TUPLE1", 0x86: "TUPLE2", 0x87: "TUPLE3",
    0x88: "NEWTRUE", 0x89: "NEWFALSE", 0x8A: "LONG1", 0x8B: "LONG4", 0x42: "BINBYTES",
    0x43: "SHORT_BINBYTES", 0x8C: "SHORT_BINUNICODE", 0x8D: "BINUNICODE8", 0x8E: "BINBYTES8",
    0x8F: "EMPTY_SET", 0x90: "ADDITEMS", 0x91: "FROZENSET", 0x92: "NEWOBJ_EX", 0x93: "STACK_GLOBAL",
    0x94: "MEMOIZE", 0x95: "FRAME", 0x96: "BYTEARRAY8", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}  # fmt: skip

ATOMS = frozenset({int, bool, type(None)})
_UINT4 = struct.Struct("<I").unpack_from
_INT4 = struct.Struct("<i").unpack_from
# What ends our reading, not the loader's.
ENDLESS = frozenset({"pickle/limit", "pickle/nesting", "pickle/bomb"})
_READS_MEMO = frozenset({0x67, 0x68, 0x6A})
_NEEDS_MARK = frozenset({0x31, 0x64, 0x65, 0x69, 0x6C, 0x6F, 0x74, 0x75, 0x90, 0x91})


class Enough(Exception):
    """So much was found that reading on tells nobody more."""


class Broken(Exception):
    """The stream cannot be followed further. `offset` is absolute in the source."""

    def __init__(self, rule: str, message: str, offset: int) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Slice:
    """A ByteSource over a part of another."""

    source: ByteSource
    start: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"read of {size} bytes at {offset} is outside {self.size} bytes")
        return self.source.read(self.start + offset, size)


@dataclass(slots=True)
class Outcome:
    """What one stream did. `end`: offset after STOP, absent when STOP was never reached. `result`: what STOP gave."""

    findings: list[Finding] = field(default_factory=list)
    protocol: int = 0
    opcodes: int = 0
    globals: set[str] = field(default_factory=set)
    tensors: dict[str, int] = field(default_factory=dict)
    end: int | None = None
    result: Value = None


def _numbered(found: re.Match[bytes], start: int) -> bool:
    """Whether the memo numbers of a matched run count up from `start`."""
    numbers = found.groups()
    return b"".join(numbers) == struct.pack(f"<{len(numbers)}I", *range(start, start + len(numbers)))


def _may_be_text(value: Value) -> bool:
    """False for what makes every loader stop where a name is needed."""
    return isinstance(value, str | Token | Blob) or (isinstance(value, Node) and value.kind in COMPUTED)


Storages = Callable[[Value], Value]
Names = Callable[[str, str], Spec | None]


def run(
    source: ByteSource,
    *,
    storages: Storages | None = None,
    names: Names | None = None,
    dicts: type[DictNode] = DictNode,
    window: int = WINDOW,
    slack: int = SLACK,
    nested: int = 0,
) -> Outcome:
    """Follow the pickle at the start of `source` to its STOP.

    storages: turns a persistent id (a tuple symbol) into a storage symbol or raises Misfit; absent outside a
    torch archive, where every persistent id is a finding. names: asked first for each imported (module, name); None
    falls back to the allow-list. dicts: the symbol of a plain dict, for whoever wants all items kept. window and
    slack: bytes read at a time, and ahead (at least 512). nested: pickles around this one.
    Never raises on any input; the outcome of a broken stream has a finding and no `end`.
    """
    machine = _Machine(source, storages, window, slack, nested, names, dicts)
    # The symbols form no cycles (`pickle/cycle` refuses them), and collecting would cost a third of the run.
    collecting = gc.isenabled()
    gc.disable()
    try:
        machine.follow()
    except Broken as broken:
        with contextlib.suppress(Enough):  # the last finding that fits
            machine.find(broken.rule, broken.message, broken.offset)
    except Enough:
        pass
    finally:
        machine.let_go()
        if collecting:
            gc.enable()
    return machine.outcome


class _Machine:
    def __init__(
        self,
        source: ByteSource,
        storages: Storages | None,
        window: int,
        slack: int,
        nested: int,
        names: Names | None,
        dicts: type[DictNode],
    ) -> None:
        self.outcome = Outcome()
        self._source = source
        self._total = source.size
        self._storages = storages
        self._window = window
        self._slack = slack
        self._nested = nested
        self._names = names
        self._dicts = dicts
        self._stack: list[Value] = []
        self._meta: list[
            tuple[list[Value], int, int, int]
        ] = []  # what lay below each MARK, nodes so far, depth there
        self._memo: list[Value] = []
        self._compacted = 0
        self._husks = Husks()
        self._standing = 0
        self._next_shrink = SHRINK_EVERY
        self._dull_windows = 0
        self._discarded = 0
        self._inner_bytes = 0
        self._data = b""
        self._base = 0
        self._hard = 0
        self._soft = -1
        self._gapped = False
        self._said: set[str] = set()
        self._frame_end: int | None = None
        self._extra = 0  # nodes added by fetching the same object again
        self._deep = 0
        self._at = 0
        self._rare: dict[int, Callable[[int], int]] = {
            0x30: self._pop, 0x31: self._pop_mark, 0x32: self._dup, 0x46: self._float, 0x49: self._int,
            0x4C: self._long, 0x50: self._persid, 0x51: self._binpersid, 0x52: self._reduce,
            0x53: self._string, 0x54: self._binstring, 0x55: self._binstring, 0x56: self._unicode,
            0x58: self._long_text, 0x8C: self._long_text, 0x8D: self._long_text,
            0x62: self._build, 0x63: self._global, 0x64: self._dict, 0x67: self._get, 0x69: self._inst,
            0x6C: self._list, 0x6F: self._obj, 0x70: self._put, 0x80: self._proto, 0x81: self._newobj,
            0x82: self._extension, 0x83: self._extension, 0x84: self._extension,
            0x8A: self._long1, 0x8B: self._long4, 0x42: self._payload, 0x43: self._payload,
            0x8E: self._payload, 0x96: self._payload, 0x8F: self._empty_set, 0x90: self._additems,
            0x91: self._frozenset, 0x92: self._newobj_ex, 0x93: self._stack_global, 0x95: self._frame,
            0x97: self._buffer, 0x98: self._buffer,
        }  # fmt: skip

    def let_go(self) -> None:
        """Drop every symbol now: the table of bound methods is a cycle, and nobody may be collecting."""
        self._rare.clear()
        self._stack, self._meta, self._memo = [], [], []

    # Findings

    def find(self, rule: str, message: str, offset: int | None = None) -> None:
        self.outcome.findings.append(Finding(rule, message, self._at if offset is None else offset))
        if len(self.outcome.findings) >= MAX_FINDINGS:
            raise Enough

    def _name(self) -> str:
        return f"{OPCODES.get(self._op(), 'opcode')} at {self._at}"

    def _op(self) -> int:
        return self._data[self._at - self._base]

    def _break(self, rule: str, message: str) -> Broken:
        return Broken(rule, message, self._at)

    # The loop

    def follow(self) -> None:
        try:
            self._loop()
        except IndexError:
            # Only the memo and the symbolic stacks are indexed past their end: windows are padded.
            op = self._op()
            if op in _READS_MEMO:
                raise self._break(
                    "pickle/memo", f"{self._name()} reads a memo entry that was never written"
                ) from None
            if op in _NEEDS_MARK and not self._meta:
                raise self._break("pickle/stack", f"{self._name()} needs a MARK and there is none") from None
            raise self._break(
                "pickle/stack", f"{self._name()} takes more from the stack than is there"
            ) from None

    def _loop(self) -> None:  # noqa: C901, PLR0912, PLR0915 - see the module docstring
        data, soft, base = self._data, self._soft, self._base
        stack, meta, memo, rare = self._stack, self._meta, self._memo, self._rare
        push, remember = stack.append, memo.append
        dicts, leaves, scalars, plain = self._dicts, LEAVES, SCALARS, SCALARS.issuperset
        quiet = (QUIET | {dicts}).issuperset
        uint4, int4 = _UINT4, _INT4
        gapped = False
        value: Value = None
        records: Echo | None = None
        rows: Echo | None = None
        closed, wait = 0, FIRST_LESSON if self._dicts is DictNode else MAX_OPCODES
        pos = at = count = deep = 0  # deep: of the deepest symbol that stood above the last MARK
        try:  # noqa: PLR1702
            while True:
                if pos >= soft:
                    self._at = base + at
                    self._stack = stack
                    pos = self._advance(base + pos, count)
                    data, soft, base = self._data, self._soft, self._base
                at = pos
                op = data[pos]
                count += 1
                if op > 0x70:
                    if op == 0x8C:  # SHORT_BINUNICODE
                        end = pos + 2 + data[pos + 1]
                        raw = data[pos + 2 : end]
                        if (
                            end < soft
                            and end <= pos + 2 + SHORT_TEXT
                            and raw.isascii()
                            and data[end - 1] != 0x2E
                        ):
                            text = raw.decode()
                            push(text)
                            if data[end] == 0x94 and not gapped:  # MEMOIZE follows all but always
                                remember(text)
                                count += 1
                                pos = end + 1
                            else:
                                pos = end
                        else:
                            self._at, self._stack = base + at, stack
                            pos = self._long_text(pos)
                    elif op == 0x94:  # MEMOIZE
                        if gapped:
                            self._at = base + at
                            raise self._break(
                                "pickle/memo", f"{self._name()} follows a numbered PUT that skipped one"
                            )
                        remember(stack[-1])
                        pos += 1
                    elif op == 0x72:  # LONG_BINPUT
                        (index,) = uint4(data, pos + 1)
                        if index == len(memo):
                            remember(stack[-1])
                        else:
                            self._at = base + at
                            gapped = self._remember(index, stack[-1])
                        pos += 5
                    elif op == 0x71:  # BINPUT
                        if data[pos + 1] == len(memo):
                            remember(stack[-1])
                        else:
                            self._at = base + at
                            gapped = self._remember(data[pos + 1], stack[-1])
                        pos += 2
                    elif op == 0x75:  # SETITEMS
                        items = stack
                        stack, tally, outer, began = meta.pop()
                        push = stack.append
                        target = stack[-1]
                        if (
                            type(target) is dicts
                            and not target.held
                            and not len(items) & 1
                            and quiet(map(type, items))
                            and (not deep or plain(map(type, items[::2])))
                        ):
                            target.weight += count + self._extra - tally
                            if deep >= target.depth:
                                target.depth = deep + 1
                            target.keep(items)
                            if records is None and began >= base and wait < LAST_LESSON:
                                closed += 1
                                if closed >= wait:
                                    closed, wait = 0, wait * 2
                                    if data[began - base] == 0x7D:
                                        records = learn(data[began - base : at + 1], memo)
                        else:
                            self._at = base + at
                            self._set_items(target, items)
                        if deep > MAX_DEPTH - 2:
                            self._check_depth(target, base + at)
                        depth = target.depth if isinstance(target, Node) else 1
                        deep = max(outer, depth)
                        pos += 1
                    elif op == 0x86:  # TUPLE2
                        last = stack.pop()
                        if type(last) in leaves and type(stack[-1]) in leaves:
                            value = stack[-1] = (stack[-1], last)
                        else:
                            self._at = base + at
                            value = stack[-1] = self._tuple((stack[-1], last))
                            if isinstance(value, Node) and value.depth > deep:
                                deep = value.depth
                        pos += 1
                        if data[pos] == 0x94 and pos < soft and not gapped:
                            remember(value)
                            count += 1
                            pos += 1
                    elif op == 0x7D:  # EMPTY_DICT
                        if records is not None:
                            found = records.matches.match(data, pos, soft)
                            if found and (not records.numbered or _numbered(found, len(memo))) and not gapped:
                                push(records.result)
                                memo += records.entries
                                count += records.steps - 1
                                records.score += records.score < 64
                                if records.result.depth > deep:
                                    deep = records.result.depth
                                pos = found.end()
                                continue
                            records.score -= 1
                            if records.score < 0:
                                records = None
                        value = dicts()
                        push(value)
                        deep = deep or 1
                        pos += 1
                        if (
                            data[pos] == 0x94 and not gapped and pos + 1 < soft and data[pos + 1] == 0x28
                        ):  # MEMOIZE, MARK
                            remember(value)
                            count += 2
                            meta.append((stack, count + self._extra, deep, base + at))
                            stack = []
                            push = stack.append
                            deep = 0
                            pos += 2
                    elif op == 0x85:  # TUPLE1
                        if type(stack[-1]) in leaves:
                            stack[-1] = (stack[-1],)
                        else:
                            self._at = base + at
                            value = stack[-1] = self._tuple((stack[-1],))
                            if isinstance(value, Node) and value.depth > deep:
                                deep = value.depth
                        pos += 1
                    elif op == 0x87:  # TUPLE3
                        last = stack.pop()
                        middle = stack.pop()
                        if type(last) in leaves and type(middle) in leaves and type(stack[-1]) in leaves:
                            stack[-1] = (stack[-1], middle, last)
                        else:
                            self._at = base + at
                            value = stack[-1] = self._tuple((stack[-1], middle, last))
                            if isinstance(value, Node) and value.depth > deep:
                                deep = value.depth
                        pos += 1
                    elif op == 0x88:  # NEWTRUE
                        push(True)
                        pos += 1
                    elif op == 0x89:  # NEWFALSE
                        push(False)
                        pos += 1
                    elif op == 0x74:  # TUPLE
                        items = stack
                        stack, tally, deep, _ = meta.pop()
                        push = stack.append
                        self._at = base + at
                        value = self._tuple(items)
                        push(value)
                        if isinstance(value, Node) and value.depth > deep:
                            deep = value.depth
                        pos += 1
                    elif op == 0x73:  # SETITEM
                        last = stack.pop()
                        key = stack.pop()
                        self._at = base + at
                        target = stack[-1]
                        self._set_items(target, [key, last])
                        if isinstance(target, Node) and target.depth > deep:
                            deep = target.depth
                        pos += 1
                    else:
                        step = rare.get(op)
                        self._at = base + at
                        if step is None:
                            raise self._break("pickle/opcode", f"byte 0x{op:02x} at {self._at} is no opcode")
                        self._stack, self._deep = stack, deep
                        pos = step(pos)
                        stack, soft, gapped, deep = self._stack, self._soft, self._gapped, self._deep
                        push = stack.append
                        if stack and isinstance(value := stack[-1], Node) and value.depth > deep:
                            deep = value.depth
                elif op == 0x68:  # BINGET
                    value = memo[data[pos + 1]]
                    if type(value) not in scalars:
                        self._at = base + at
                        deep = max(deep, self._fetched(value))
                    push(value)
                    pos += 2
                elif op == 0x4B:  # BININT1
                    push(data[pos + 1])
                    pos += 2
                elif op == 0x47:  # BINFLOAT
                    push(FLOAT)
                    pos += 9
                elif op == 0x4D:  # BININT2
                    push(data[pos + 1] | data[pos + 2] << 8)
                    pos += 3
                elif op == 0x58:  # BINUNICODE
                    end = pos + 5 + uint4(data, pos + 1)[0]
                    if end < soft and end <= pos + 5 + SHORT_TEXT and data[end - 1] != 0x2E:
                        raw = data[pos + 5 : end]
                        if raw.isascii():
                            text = raw.decode()
                            push(text)
                            if data[end] == 0x72 and uint4(data, end + 1)[0] == len(memo):  # LONG_BINPUT
                                remember(text)
                                count += 1
                                pos = end + 5
                            else:
                                pos = end
                            continue
                    self._at, self._stack = base + at, stack
                    pos = self._long_text(pos)
                elif op == 0x28:  # MARK
                    meta.append(
                        (stack, count + self._extra, deep, base + pos - 6 if data[pos - 5] == 0x72 else -1)
                    )
                    stack = []
                    push = stack.append
                    deep = 0
                    pos += 1
                elif op == 0x65:  # APPENDS
                    items = stack
                    stack, tally, outer, began = meta.pop()
                    push = stack.append
                    target = stack[-1]
                    if type(target) is ListNode and not target.held and quiet(map(type, items)):
                        weight = count + self._extra - tally
                        target.weight += weight
                        if deep:
                            if deep >= target.depth:
                                target.depth = deep + 1
                            if weight > MAX_KEY_WEIGHT:
                                target.fact = self._heaviest(target, items)
                        target.keep(items)
                        if rows is None and began >= base and wait < LAST_LESSON:
                            closed += 1
                            if closed >= wait:
                                closed, wait = 0, wait * 2
                                if data[began - base] == 0x5D:
                                    rows = learn(data[began - base : at + 1], memo)
                    else:
                        self._at = base + at
                        self._append(target, items)
                    if deep > MAX_DEPTH - 2:
                        self._check_depth(target, base + at)
                    depth = target.depth if isinstance(target, Node) else 1
                    deep = max(outer, depth)
                    pos += 1
                elif op == 0x4E:  # NONE
                    push(None)
                    pos += 1
                elif op == 0x5D:  # EMPTY_LIST
                    if rows is not None:
                        found = rows.matches.match(data, pos, soft)
                        if found and (not rows.numbered or _numbered(found, len(memo))) and not gapped:
                            push(rows.result)
                            memo += rows.entries
                            count += rows.steps - 1
                            rows.score += rows.score < 64
                            if rows.result.depth > deep:
                                deep = rows.result.depth
                            pos = found.end()
                            continue
                        rows.score -= 1
                        if rows.score < 0:
                            rows = None
                    value = ListNode()
                    push(value)
                    deep = deep or 1
                    pos += 1
                    if (
                        data[pos] == 0x94 and not gapped and pos + 1 < soft and data[pos + 1] == 0x28
                    ):  # MEMOIZE, MARK
                        remember(value)
                        count += 2
                        meta.append((stack, count + self._extra, deep, base + at))
                        stack = []
                        push = stack.append
                        deep = 0
                        pos += 2
                elif op == 0x4A:  # BININT
                    push(int4(data, pos + 1)[0])
                    pos += 5
                elif op == 0x6A:  # LONG_BINGET
                    value = memo[uint4(data, pos + 1)[0]]
                    if type(value) not in scalars:
                        self._at = base + at
                        deep = max(deep, self._fetched(value))
                    push(value)
                    pos += 5
                elif op == 0x29:  # EMPTY_TUPLE
                    push(())
                    pos += 1
                elif op == 0x61:  # APPEND
                    last = stack.pop()
                    self._at = base + at
                    target = stack[-1]
                    self._append(target, [last])
                    if isinstance(target, Node) and target.depth > deep:
                        deep = target.depth
                    pos += 1
                elif op == 0x2E:  # STOP
                    self._at = base + at
                    self._stack = stack
                    self._stop()
                    return
                else:
                    step = rare.get(op)
                    self._at = base + at
                    if step is None:
                        raise self._break("pickle/opcode", f"byte 0x{op:02x} at {self._at} is no opcode")
                    self._stack, self._deep = stack, deep
                    pos = step(pos)
                    stack, soft, gapped, deep = self._stack, self._soft, self._gapped, self._deep
                    push = stack.append
                    if stack and isinstance(value := stack[-1], Node) and value.depth > deep:
                        deep = value.depth
        finally:
            self.outcome.opcodes = count
            self._at = base + at

    def _fetched(self, value: Value) -> int:
        """Depth of an object that now stands in two places. From now on it may not change."""
        if isinstance(value, Unset):
            raise self._break("pickle/memo", f"{self._name()} uses a memo entry that was never written")
        if not isinstance(value, Node):
            return 0
        value.held = True
        self._extra += value.weight
        if self._extra > UNFOLDING * self._at + UNFOLDING_FLOOR:
            self._once(
                "pickle/bomb",
                f"{self._name()} brings a value that unfolds to {min(self._extra, 10**18)} nodes",
            )
            self._extra -= value.weight
        return value.depth

    def _heaviest(self, target: Node, items: Sequence[Value]) -> int:
        before = target.fact if isinstance(target.fact, int) else 0
        return max(before, max((item.weight for item in items if isinstance(item, Node)), default=0))

    def _check_depth(self, target: Value, where: int) -> None:
        if isinstance(target, Node) and target.depth > MAX_DEPTH:
            self._at = where
            raise self._break("pickle/nesting", f"{self._name()} nests deeper than {MAX_DEPTH}")

    def _advance(self, where: int, count: int) -> int:
        """Check frame and end at absolute offset `where`, refill the window, return the new position in it."""
        if self._frame_end is not None and where >= self._frame_end:
            if where > self._frame_end:
                raise self._break(
                    "pickle/frame", f"{self._name()} crosses the end of its frame, {self._frame_end}"
                )
            self._frame_end = None
        if where > self._total:
            raise self._break(
                "pickle/truncated", f"{self._name()} needs {where - self._total} bytes past the end"
            )
        if where == self._total:
            raise Broken("pickle/no-stop", f"the stream ends at {where} without STOP", where)
        if where >= self._hard:
            self._limits(where, count)
            size = min(self._window + self._slack, self._total - where)
            self._data = self._source.read(where, size) + PADDING
            self._base = where
            self._hard = self._total if where + size == self._total else where + self._window
            self._dull(where)
        self._set_soft()
        return where - self._base

    def _set_soft(self) -> None:
        end = self._hard if self._frame_end is None else min(self._hard, self._frame_end)
        self._soft = end - self._base

    def _limits(self, where: int, count: int) -> None:
        """Counts are checked once a window: between two checks one window of bytes is the bound."""
        frames = [self._stack, *(below for below, *_ in self._meta)]
        standing = sum(map(len, frames))
        for number, limit, what in (
            (count, MAX_OPCODES, "opcodes"),
            (len(self._memo), MAX_MEMO, "memo entries"),
            (standing, MAX_STACK, "stack entries"),
            (len(self._meta), MAX_MARKS, "open marks"),
            (self._discarded, MAX_DISCARDED, "objects thrown away"),
        ):
            if number > limit:
                raise Broken("pickle/limit", f"more than {limit} {what} before {where}", where)
        if where >= self._next_shrink or standing > max(2 * self._standing, SHRINK_STACK):
            self._next_shrink = where + SHRINK_EVERY
            self._standing = standing
            self._shrink(where, frames)

    def _shrink(self, where: int, frames: list[list[Value]]) -> None:
        if sum(type(value) in ATOMS for value in self._memo[self._compacted :]) > MAX_ATOMS:
            raise Broken(
                "pickle/memo", f"the memo names numbers and None before {where}, which no pickler does", where
            )
        try:
            held = shrink(self._husks, self._memo, self._compacted, frames)
        except TooMany:
            raise Broken("pickle/limit", f"too many different objects before {where}", where) from None
        self._compacted = len(self._memo)
        if held > KEPT_BYTES_BUDGET:
            raise Broken("pickle/limit", f"more than {KEPT_BYTES_BUDGET} bytes at hand before {where}", where)

    def _dull(self, where: int) -> None:
        """Count opcodes that say nothing new. A few bytes in an archive unpack to gigabytes of them."""
        sample = self._data[:DULL_SAMPLE]
        if len(sample) == DULL_SAMPLE and len(zlib.compress(sample, 1)) * DULL_RATIO < DULL_SAMPLE:
            self._dull_windows += 1
            if self._dull_windows * self._window > MAX_DULL_BYTES:
                raise Broken(
                    "pickle/bomb", f"more than {MAX_DULL_BYTES} bytes before {where} repeat themselves", where
                )

    def _once(self, rule: str, message: str) -> None:
        if rule not in self._said:
            self._said.add(rule)
            self.find(rule, message)

    # Reading arguments

    def _bytes(self, pos: int, size: int) -> bytes:
        """`size` bytes at window position `pos`. Raises Broken when the file ends before."""
        start = self._base + pos
        if start + size > self._total:
            raise self._break(
                "pickle/truncated", f"{self._name()} needs {start + size - self._total} bytes past the end"
            )
        if pos + size <= len(self._data) - len(PADDING):
            return self._data[pos : pos + size]
        return self._source.read(start, size)

    def _number(self, pos: int, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._bytes(pos, size), "little", signed=signed)

    def _line(self, pos: int, limit: int = MAX_LINE) -> bytes:
        """The bytes from `pos` up to a newline, which is left out."""
        start = self._base + pos
        end = self._data.find(b"\n", pos, pos + limit + 1)
        if end >= 0:
            return self._data[pos:end]
        size = min(limit + 1, self._total - start)
        line, newline, _ = (self._source.read(start, size) if size > 0 else b"").partition(b"\n")
        if newline:
            return line
        if size > limit:
            raise self._break("pickle/length", f"{self._name()} has a line of more than {limit} bytes")
        raise self._break("pickle/truncated", f"{self._name()} has a line without an end")

    def _length(self, pos: int, width: int) -> int:
        """A payload length of `width` bytes at `pos` that fits the file."""
        size = self._number(pos, width)
        if size >= 1 << 63:
            raise self._break("pickle/length", f"{self._name()} declares {size} bytes")
        if self._base + pos + width + size > self._total:
            raise self._break(
                "pickle/truncated", f"{self._name()} declares {size} bytes, more than the file has left"
            )
        return size

    # Scalars

    def _float(self, pos: int) -> int:
        line = self._line(pos + 1)
        if not CANONICAL_FLOAT.fullmatch(line):
            self._odd(line)
        self._stack.append(FLOAT)
        return pos + 2 + len(line)

    def _odd(self, line: bytes) -> None:
        self.find(
            "pickle/noncanonical",
            f"{self._name()} writes {ascii(line[:40])[1:]}, which loaders read differently",
        )

    def _int(self, pos: int) -> int:
        line = self._line(pos + 1, MAX_INTEGER_DIGITS)
        if line in {b"00", b"01"}:
            self._stack.append(line == b"01")
        elif CANONICAL_INTEGER.fullmatch(line):
            self._stack.append(int(line) if len(line) < 40 else LONG)
        else:
            self._odd(line)
            self._stack.append(LONG)
        return pos + 2 + len(line)

    def _long(self, pos: int) -> int:
        line = self._line(pos + 1, MAX_INTEGER_DIGITS)
        digits = line.removesuffix(b"L")
        if not CANONICAL_INTEGER.fullmatch(digits):
            self._odd(line)
            digits = b"0"
        self._stack.append(int(digits) if len(digits) < 40 else LONG)
        return pos + 2 + len(line)

    def _long1(self, pos: int) -> int:
        return self._integer(pos + 2, self._number(pos + 1, 1))

    def _long4(self, pos: int) -> int:
        return self._integer(pos + 5, self._number(pos + 1, 4, signed=True))

    def _integer(self, pos: int, size: int) -> int:
        if not 0 <= size <= MAX_INTEGER_BYTES:
            raise self._break("pickle/length", f"{self._name()} declares an integer of {size} bytes")
        raw = self._bytes(pos, size)
        self._stack.append(int.from_bytes(raw, "little", signed=True) if size <= 16 else LONG)
        return pos + size

    # Text and bytes

    def _string(self, pos: int) -> int:
        line = self._line(pos + 1)
        quoted = len(line) >= 2 and line[:1] == line[-1:] and line[:1] in {b"'", b'"'}
        if not quoted or not ESCAPES.fullmatch(line, 1, len(line) - 1):
            self._odd(line)
            self._stack.append(TEXT)
        else:
            self._eight_bit(line[1:-1].decode("unicode_escape").encode("latin1"))
        return pos + 2 + len(line)

    def _binstring(self, pos: int) -> int:
        width = 4 if self._op() == 0x54 else 1
        size = self._length(pos + 1, width)
        if size >= 1 << 31:
            raise self._break("pickle/length", f"{self._name()} declares a negative length")
        self._eight_bit(self._bytes(pos + 1 + width, min(size, MAX_LINE)), size)
        return pos + 1 + width + size

    def _eight_bit(self, raw: bytes, size: int | None = None) -> None:
        """A Python 2 string: what it means beyond ASCII depends on an argument of the loader."""
        if not raw.isascii():
            self._once(
                "pickle/text", f"{self._name()} holds 8-bit text, which each loader decodes its own way"
            )
        count = len(raw) if size is None else size
        self._stack.append(raw.decode("ascii", "replace") if count <= KEPT_TEXT else Blob("text", count))

    def _unicode(self, pos: int) -> int:
        line = self._line(pos + 1)
        try:
            text = line.decode("raw_unicode_escape")
        except UnicodeDecodeError as bad:
            raise self._break(
                "pickle/text", f"{self._name()} is no raw-unicode-escape text: {bad.reason}"
            ) from bad
        self._push_text(text)
        return pos + 2 + len(line)

    def _long_text(self, pos: int) -> int:
        width = {0x58: 4, 0x8C: 1, 0x8D: 8}[self._op()]
        size = self._length(pos + 1, width)
        start = pos + 1 + width
        if size <= MAX_NESTED_TEXT:
            try:
                self._push_text(self._bytes(start, size).decode("utf-8", "surrogatepass"))
            except UnicodeDecodeError as bad:
                raise self._break("pickle/text", f"{self._name()} is not UTF-8: {bad.reason}") from bad
        else:
            self._stack.append(Blob("text", self._characters(self._base + start, size)))
        return start + size

    def _characters(self, start: int, size: int) -> int:
        """Characters in `size` bytes of UTF-8 at absolute `start`, read in parts."""
        decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        count = 0
        try:
            for offset in range(start, start + size, WINDOW):
                part = self._source.read(offset, min(WINDOW, start + size - offset))
                count += len(decoder.decode(part, offset + len(part) == start + size))
        except UnicodeDecodeError as bad:
            raise self._break("pickle/text", f"{self._name()} is not UTF-8: {bad.reason}") from bad
        return count

    def _push_text(self, text: str) -> None:
        for inner in pickles_in_text(text):
            self._look_inside(BytesSource(inner))
        self._stack.append(text if len(text) <= KEPT_TEXT else Blob("text", len(text)))

    def _payload(self, pos: int) -> int:
        op = self._op()
        width = {0x42: 4, 0x43: 1, 0x8E: 8, 0x96: 8}[op]
        size = self._length(pos + 1, width)
        start = pos + 1 + width
        inner = Slice(self._source, self._base + start, size)
        if may_be_pickle(inner):
            self._look_inside(inner)
        if 0 < size <= MAX_NESTED_TEXT and self._bytes(start, 1) in TEXT_BEGINS:
            for decoded in pickles_in_text(self._bytes(start, size).decode("latin1")):
                self._look_inside(BytesSource(decoded))
        if op == 0x96:
            self._stack.append(Blob("bytearray", size))
        else:
            self._stack.append(self._bytes(start, size) if size <= KEPT_BYTES else Blob("bytes", size))
        return start + size

    def _look_inside(self, inner: ByteSource) -> None:
        """Refuse a pickle kept as bytes or text if it imports what is not listed: who unpickles it later, runs it."""
        if self._nested >= MAX_NESTED:
            self.find("pickle/nested", f"{self._name()} holds a pickle, {MAX_NESTED + 1} deep")
            return
        self._inner_bytes += inner.size
        if self._inner_bytes > MAX_INNER_BYTES:
            raise self._break("pickle/limit", f"more than {MAX_INNER_BYTES} bytes of pickles inside pickles")
        outcome = run(inner, window=self._window, slack=self._slack, nested=self._nested + 1)
        rules = {finding.rule for finding in outcome.findings}
        whole = outcome.end is not None or rules & ENDLESS or len(outcome.findings) >= MAX_FINDINGS
        if whole and ((outcome.globals and not rules <= {"pickle/trailing"}) or "pickle/nested" in rules):
            worst = next(finding for finding in outcome.findings if finding.rule != "pickle/trailing")
            self.find("pickle/nested", f"the pickle inside {self._name()}: {worst.message} ({worst.rule})")
        elif (
            not rules
            and outcome.end == inner.size
            and outcome.protocol >= 2
            and outcome.opcodes >= MIN_INSIDE
        ):
            self.find(
                "pickle/inside", f"{self._name()} holds a whole pickle of {inner.size} bytes, of plain data"
            )

    # Imports

    def _global(self, pos: int) -> int:
        module = self._line(pos + 1, MAX_NAME)
        name = self._line(pos + 2 + len(module), MAX_NAME)
        try:
            self._stack.append(self._import(module.decode(), name.decode()))
        except UnicodeDecodeError as bad:
            raise self._break("pickle/text", f"{self._name()} names what is not UTF-8") from bad
        return pos + 3 + len(module) + len(name)

    def _stack_global(self, pos: int) -> int:
        name, module = self._stack.pop(), self._stack.pop()
        if isinstance(name, str) and isinstance(module, str):
            self._stack.append(self._import(module, name))
        elif not _may_be_text(name) or not _may_be_text(module):
            raise self._break("pickle/stack", f"{self._name()} names an import by what is no text")
        else:
            shown = f"{render(module)}, {render(name)}"
            self.find("pickle/global", f"{self._name()} would import what no text names: {shown}")
            self._stack.append(Global("?", "?", None))
        return pos + 1

    def _import(self, module: str, name: str) -> Global:
        if self.outcome.protocol < 3:
            module, name = LEGACY_NAMES.get((module, name), (LEGACY_MODULES.get(module, module), name))
        spec = self._names(module, name) if self._names else None
        if spec is None:
            spec = listed(module, name)
        found = Global(module, name, spec)
        shown = render(found)
        if len(self.outcome.globals) < MAX_FINDINGS:
            self.outcome.globals.add(shown)
        if spec is None:
            if "." in name:
                self.find("pickle/dotted", f"{self._name()} would reach {shown} through attributes")
            else:
                self.find("pickle/global", f"{self._name()} would import {shown}, which is not listed")
        return found

    def _extension(self, pos: int) -> int:
        width = {0x82: 1, 0x83: 2, 0x84: 4}[self._op()]
        code = self._number(pos + 1, width)
        self.find(
            "pickle/extension", f"{self._name()} would import number {code} of the loader's copyreg registry"
        )
        self._stack.append(Global("copyreg", f"extension {code}", None))
        return pos + 1 + width

    # Calls

    def _reduce(self, pos: int) -> int:
        args = self._stack.pop()
        self._stack[-1] = self._call(self._stack[-1], args)
        return pos + 1

    def _call(self, target: Value, args: Value) -> Value:
        shown = render_call(target, args)
        spec = target.spec if isinstance(target, Global) else None
        if isinstance(target, Node) and target.kind == "partial" and isinstance(target.fact, Spec):
            spec, target = target.fact, target.made_by
        if spec is None or not isinstance(target, Global):
            self.find("pickle/call", f"{self._name()} would call {shown}")
            return self._refused(target, args)
        if spec.call is None:
            self.find(
                "pickle/call", f"{self._name()} would call {shown}, which is listed to be named, not called"
            )
            return self._refused(target, args)
        try:
            result = spec.call(items_of(args, "the arguments"))
        except Misfit as misfit:
            self.find("pickle/arguments", f"{self._name()} would call {shown}: {misfit}")
            return self._refused(target, args)
        if isinstance(result, Node):
            if result.made_by is None:  # a rule for a rebuild function names the class it rebuilds
                result.made_by = target
            if result.kind in TENSORS:
                dtype = str(result.fact)
                self.outcome.tensors[dtype] = self.outcome.tensors.get(dtype, 0) + 1
        return result

    def _refused(self, target: Value, args: Value) -> Node:
        node = Node()
        node.made_by = target if isinstance(target, Global) else None
        if isinstance(args, tuple):
            node.keep(args)
        elif isinstance(args, Node) and args.kept:
            node.keep(args.kept)
        return node

    def _instance(self, target: Value, args: Value) -> None:
        """INST, OBJ and NEWOBJ_EX: no listed class is written by them, so none may be made by them."""
        self.find("pickle/instance", f"{self._name()} would create {render_call(target, args)}")
        self._stack.append(self._refused(target, args))

    def _new(self, target: Value, args: Value) -> Value:
        """NEWOBJ: `__new__` of a listed class."""
        spec = target.spec if isinstance(target, Global) else None
        if spec is None or spec.new is None or not isinstance(target, Global):
            self.find("pickle/instance", f"{self._name()} would create {render_call(target, args)}")
            return self._refused(target, args)
        try:
            result = spec.new(items_of(args, "the arguments"))
        except Misfit as misfit:
            self.find(
                "pickle/arguments", f"{self._name()} would create {render_call(target, args)}: {misfit}"
            )
            return self._refused(target, args)
        if isinstance(result, Node) and result.made_by is None:
            result.made_by = target
        return result

    def _inst(self, pos: int) -> int:
        after = self._global(pos)
        target = self._stack.pop()
        items = self._unmark()
        self._instance(target, self._tuple(items))
        return after

    def _obj(self, pos: int) -> int:
        items = self._unmark()
        target = items.pop(0)
        self._instance(target, self._tuple(items))
        return pos + 1

    def _newobj(self, pos: int) -> int:
        args = self._stack.pop()
        self._stack[-1] = self._new(self._stack[-1], args)
        return pos + 1

    def _newobj_ex(self, pos: int) -> int:
        named, args, target = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if isinstance(named, Node) and named.count:
            args = self._tuple([args, named])
        self._instance(target, args)
        return pos + 1

    def _build(self, pos: int) -> int:
        state = self._stack.pop()
        target = self._stack[-1]
        spec = target.made_by.spec if isinstance(target, Node) and target.made_by else None
        shown = f"{render(state)[:200]} of {render(target)[:200]}"
        if isinstance(target, Global) or spec is None or spec.build is None or not isinstance(target, Node):
            self.find("pickle/build", f"{self._name()} would set the state {shown}")
        elif (
            target.held and target.kind != "object"
        ):  # objects may know each other: nobody judges their inside
            self.find(
                "pickle/cycle", f"{self._name()} would set the state {shown}, which is already inside another"
            )
        else:
            try:
                spec.build(target, state)
            except Misfit as misfit:
                self.find("pickle/build", f"{self._name()} would set the state {shown}: {misfit}")
            self._hold(target, [state])
            if spec.inline is not None:
                return self._inline(spec.inline, target, pos + 1)
        return pos + 1

    def _inline(self, inline: Inline, node: Node, pos: int) -> int:
        """Go on behind bytes that the loader reads from the file itself, between two opcodes."""
        start = self._base + pos
        if self._frame_end is not None and start != self._frame_end:
            raise self._break("pickle/frame", f"{self._name()} is followed by raw bytes inside a frame")
        try:
            end = inline(node, self._source, start)
        except Misfit as misfit:
            raise self._break(
                "pickle/inline", f"{self._name()} is followed by raw bytes: {misfit}"
            ) from misfit
        if not start <= end <= self._total:
            raise self._break(
                "pickle/truncated", f"{self._name()} is followed by {end - start} bytes of data"
            )
        self._frame_end = None
        self._soft = -1  # so that the loop advances, and reads its window anew where it must
        return end - self._base

    def _persid(self, pos: int) -> int:
        line = self._line(pos + 1)
        self.find("pickle/persistent", f"{self._name()} would ask the loader for {ascii(line[:40])[1:]}")
        self._stack.append(node_of("unknown"))
        return pos + 2 + len(line)

    def _binpersid(self, pos: int) -> int:
        wanted = self._stack.pop()
        node: Value = node_of("unknown")
        if self._storages is None:
            self.find("pickle/persistent", f"{self._name()} would ask the loader for {render(wanted)}")
        else:
            try:
                node = self._storages(wanted)
            except Misfit as misfit:
                self.find("torch/storage", f"{self._name()} names the storage {render(wanted)}: {misfit}")
        self._stack.append(node)
        return pos + 1

    def _buffer(self, pos: int) -> int:
        self.find("pickle/buffer", f"{self._name()} would take bytes that are not in this file")
        if self._op() == 0x97:
            self._stack.append(Blob("bytearray", 0))
        return pos + 1

    # Stack, memo, frames

    def _unmark(self) -> list[Value]:
        """The items above the last MARK, which is gone with them."""
        items = self._stack
        self._stack, _, self._deep, _ = self._meta.pop()
        return items

    def _pop(self, pos: int) -> int:
        self._discarded += 1
        if self._stack:
            self._stack.pop()
        else:
            self._unmark()
        return pos + 1

    def _pop_mark(self, pos: int) -> int:
        self._discarded += 1
        self._unmark()
        return pos + 1

    def _dup(self, pos: int) -> int:
        self._discarded += 1
        self._fetched(self._stack[-1])
        self._stack.append(self._stack[-1])
        return pos + 1

    def _get(self, pos: int) -> int:
        line = self._line(pos + 1)
        if not CANONICAL_INDEX.fullmatch(line):
            self._odd(line)
            raise self._break("pickle/memo", f"{self._name()} reads no memo entry")
        value = self._memo[int(line)]
        self._fetched(value)
        self._stack.append(value)
        return pos + 2 + len(line)

    def _put(self, pos: int) -> int:
        line = self._line(pos + 1)
        if not CANONICAL_INDEX.fullmatch(line):
            self._odd(line)
            raise self._break("pickle/memo", f"{self._name()} writes no memo entry")
        self._remember(int(line), self._stack[-1])
        return pos + 2 + len(line)

    def _remember(self, index: int, value: Value) -> bool:
        """A numbered PUT; true once one has left a gap.

        Honest picklers count up and never write an entry twice; Python 2 began at 1.
        """
        memo = self._memo
        if index == len(memo):
            memo.append(value)
        elif index < len(memo):
            if not isinstance(memo[index], Unset):
                self._once("pickle/memo", f"{self._name()} writes memo entry {index} a second time")
            memo[index] = value
        elif index < MAX_MEMO and index <= len(memo) + MAX_GAP:
            self._gapped = True
            memo.extend([UNSET] * (index - len(memo)))
            memo.append(value)
        else:
            raise self._break("pickle/memo", f"{self._name()} writes memo entry {index} after {len(memo)}")
        return self._gapped

    def _proto(self, pos: int) -> int:
        version = self._number(pos + 1, 1)
        if version > 5:
            raise self._break(
                "pickle/proto", f"{self._name()} declares protocol {version}, the last known is 5"
            )
        if self._at != 0:
            self.find("pickle/proto", f"{self._name()} changes the protocol in the middle")
        self.outcome.protocol = version
        return pos + 2

    def _frame(self, pos: int) -> int:
        size = self._number(pos + 1, 8)
        start = self._at + 9
        if self._frame_end is not None and start < self._frame_end:
            raise self._break(
                "pickle/frame", f"{self._name()} begins inside the frame that ends at {self._frame_end}"
            )
        if self._frame_end is not None and start > self._frame_end:
            raise self._break(
                "pickle/frame", f"{self._name()} crosses the end of its frame, {self._frame_end}"
            )
        if start + size > self._total:
            raise self._break(
                "pickle/truncated", f"{self._name()} declares {size} bytes, more than the file has left"
            )
        self._frame_end = start + size
        self._set_soft()
        return pos + 9

    def _stop(self) -> None:
        end = self._at + 1
        result = self._stack.pop()
        self.outcome.end = end
        self.outcome.result = result
        if type(result) not in SCALARS and (not isinstance(result, Node) or result.carries):
            self._surface(ListNode(), result)
        if self._stack or self._meta:
            left = len(self._stack) + sum(len(below) for below, *_ in self._meta)
            self.find(
                "pickle/leftover", f"{self._name()} leaves {left} objects and {len(self._meta)} marks behind"
            )
        if self._frame_end is not None and self._frame_end > end:
            self.find("pickle/frame", f"{self._name()} comes before the end of its frame, {self._frame_end}")
        if end < self._total:
            rest = render(self._source.read(end, min(16, self._total - end)))
            self.find("pickle/trailing", f"{self._total - end} bytes follow STOP: {rest}", end)

    # Containers

    def _tuple(self, items: Sequence[Value]) -> Value:
        if len(items) <= SMALL_TUPLE and LEAVES.issuperset(map(type, items)):
            return tuple(items)
        node = node_of("tuple")
        self._hold(node, items)
        node.keep(items)
        if node.carries:
            node.__class__ = Carrier
        return node

    def _list(self, pos: int) -> int:
        items = self._unmark()
        self._stack.append(ListNode())
        self._append(self._stack[-1], items)
        return pos + 1

    def _dict(self, pos: int) -> int:
        items = self._unmark()
        self._stack.append(self._dicts())
        self._set_items(self._stack[-1], items)
        return pos + 1

    def _empty_set(self, pos: int) -> int:
        self._stack.append(node_of("set"))
        return pos + 1

    def _additems(self, pos: int) -> int:
        items = self._unmark()
        target = self._stack[-1]
        if self._may_change(target, frozenset({"set", "unknown"}), "add items to") and isinstance(
            target, Node
        ):
            self._keys(items)
            self._hold(target, items)
            target.keep(items)
        return pos + 1

    def _frozenset(self, pos: int) -> int:
        items = self._unmark()
        node = node_of("frozenset")
        self._keys(items)
        self._hold(node, items)
        self._stack.append(node)
        return pos + 1

    def _may_change(self, target: Value, kinds: frozenset[str], verb: str) -> bool:
        if not isinstance(target, Node) or target.kind not in kinds:
            self.find("pickle/target", f"{self._name()} would {verb} {render(target)[:200]}")
            return False
        if target.held:
            self.find(
                "pickle/cycle",
                f"{self._name()} would {verb} a {target.kind} that is already inside another object",
            )
            return False
        return True

    def _append(self, target: Value, items: Sequence[Value]) -> None:
        if self._may_change(target, SEQUENCES, "append to") and isinstance(target, Node):
            self._hold(target, items)
            target.keep(items)

    def _set_items(self, target: Value, items: Sequence[Value]) -> None:
        if len(items) % 2:
            raise self._break("pickle/stack", f"{self._name()} has a key without a value")
        if self._may_change(target, MAPPINGS, "set items of") and isinstance(target, Node):
            self._hold_pairs(target, items)

    def _hold_pairs(self, target: Node, items: Sequence[Value]) -> None:
        self._keys(items[0::2])
        self._hold(target, items)
        target.keep(items)

    def _keys(self, items: Sequence[Value]) -> None:
        if SCALARS.issuperset(map(type, items)):
            return
        for item in items:
            if isinstance(item, Node):
                if item.kind in UNHASHABLE:
                    self._once(
                        "pickle/key", f"{self._name()} uses a {item.kind} as a key, which no loader can"
                    )
                if item.weight > MAX_KEY_WEIGHT:
                    self._once(
                        "pickle/bomb", f"{self._name()} uses a key that unfolds to {item.weight} nodes"
                    )

    def _hold(self, target: Node, items: Sequence[Value]) -> None:
        """Place `items` inside `target`: their weight and depth add up, and from now on they may not change."""
        weight, depth = target.weight + len(items), target.depth
        heaviest = 0
        for item in items:
            if isinstance(item, Node):
                weight += item.weight - 1
                if item.depth >= depth:
                    depth = item.depth + 1
                if item.weight > heaviest:
                    heaviest = item.weight
                if item.carries:
                    self._surface(target, item)
            elif type(item) not in SCALARS:
                self._surface(target, item)
        if target.kind == "list":
            target.fact = max(heaviest, target.fact if isinstance(target.fact, int) else 0)
        target.weight, target.depth = weight, depth
        if weight > UNFOLDING * self._at + UNFOLDING_FLOOR:
            self._once(
                "pickle/bomb", f"{self._name()} builds a value that unfolds to {min(weight, 10**18)} nodes"
            )
            target.weight = 1
        if depth > MAX_DEPTH:
            raise self._break("pickle/nesting", f"{self._name()} nests deeper than {MAX_DEPTH}")

    def _surface(self, target: Node, item: Value) -> None:
        """An import is about to stand as a value. A tuple may carry it to a call; nothing else may keep it."""
        if isinstance(item, Unset):
            raise self._break("pickle/memo", f"{self._name()} uses a memo entry that was never written")
        if isinstance(item, Global) and (item.spec is None or item.spec.data):
            return
        if target.kind == "tuple":
            target.carries = True
        else:
            self.find("pickle/global-value", f"{self._name()} would keep {render(item)[:200]} as a value")
