"""The pickle machine against a slow reference that only knows the stack, the memo, marks and frames.

The reference is written from PEP 307, 3154 and 574 and the text of `pickletools`: one small function for each kind of
opcode, one value at a time, no short cuts. Values are what matters for structure: a known text, something that is
surely no text, or something unknown. A stream is whole when CPython's unpicklers can follow it to STOP; what the calls
inside it would do is nobody's question here.
"""

import io
import pickle
import pickletools
import random
from dataclasses import dataclass, field

import pytest

from steelyard.formats.base import BytesSource
from steelyard.formats.pickle_machine import MAX_FINDINGS, run

OTHER, UNKNOWN, MARK, UNSET = "other", "unknown", "mark", "unset"
GAP = 1024
RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# Where the machine refuses on purpose what CPython may still load.
STRICTER = {"pickle/noncanonical", "pickle/limit", "pickle/nesting", "pickle/bomb"}


class Broken(Exception):
    """No unpickler can go on here."""


class Typed(Exception):
    """An unpickler stops here because of a value's type or text; the bytes themselves can be followed."""


@dataclass(frozen=True)
class Text:
    text: str


@dataclass
class Reference:
    """The state of one stream, and what became of it."""

    data: bytes
    at: int = 0
    began: int = 0  # of this opcode
    stack: list = field(default_factory=list)
    memo: dict = field(default_factory=dict)
    frame_end: int | None = None
    protocol: int = 0
    count: int = 0
    globals: set = field(default_factory=set)
    end: int | None = None
    verdict: str = "whole"  # or "broken", or "typed"
    odd: bool = False  # the machine may refuse this on purpose
    seen: set = field(default_factory=set)  # opcodes

    def follow(self):
        try:
            while self.end is None:
                self.step()
        except Broken:
            self.verdict, self.end = "broken", None
        except Typed:
            self.verdict, self.end = "typed", None
        return self

    def step(self):
        self.began = self.at
        code = self.take(1)
        opcode = pickletools.code2op.get(code.decode("latin1"))
        if opcode is None:
            raise Broken
        self.count += 1
        self.seen.add(opcode.name)
        if self.count > 1 and opcode.name == "PROTO":
            self.odd = True
        getattr(self, f"do_{opcode.name.lower()}")()

    # Bytes

    def take(self, size):
        """As PEP 3154 says, a frame holds whole opcodes; the Python unpickler enforces it."""
        if self.frame_end is not None and self.at == self.frame_end:
            self.frame_end = None
            self.odd = self.odd or self.at != self.began  # CPython's Python unpickler reads on in the file
        stop = len(self.data) if self.frame_end is None else self.frame_end
        if size < 0 or self.at + size > stop:
            raise Broken
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size, signed=False):
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self):
        stop = self.data.find(b"\n", self.at)
        if stop < 0:
            raise Broken
        return self.take(stop + 1 - self.at)[:-1]

    # Stack

    def pop(self):
        if not self.stack or self.stack[-1] is MARK:
            raise Broken
        return self.stack.pop()

    def top(self):
        if not self.stack or self.stack[-1] is MARK:
            raise Broken
        return self.stack[-1]

    def push(self, value=OTHER):
        self.stack.append(value)

    def above_mark(self):
        if MARK not in self.stack:
            raise Broken
        items = []
        while self.stack[-1] is not MARK:
            items.insert(0, self.stack.pop())
        self.stack.pop()
        return items

    def replaced(self, count, value=OTHER):
        """Take `count` values, push one."""
        for _ in range(count):
            self.pop()
        self.push(value)

    # Control

    def do_proto(self):
        self.protocol = self.number(1)
        if self.protocol > 5:
            raise Broken

    def do_frame(self):
        size = self.number(8)
        if self.frame_end is not None and self.at < self.frame_end:
            raise Broken
        if self.at + size > len(self.data):
            raise Broken
        self.frame_end = self.at + size

    def do_stop(self):
        self.pop()
        self.end = self.at

    def do_mark(self):
        self.stack.append(MARK)

    def do_pop(self):
        if not self.stack:
            raise Broken
        self.stack.pop()

    def do_pop_mark(self):
        self.above_mark()

    def do_dup(self):
        self.push(self.top())

    # Scalars

    def do_none(self):
        self.push()

    do_newtrue = do_newfalse = do_none

    def fixed(self, size):
        self.take(size)
        self.push()

    def do_binint(self):
        self.fixed(4)

    def do_binint1(self):
        self.fixed(1)

    def do_binint2(self):
        self.fixed(2)

    def do_binfloat(self):
        self.fixed(8)

    def do_long1(self):
        self.fixed(self.number(1))

    def do_long4(self):
        self.fixed(self.number(4, signed=True))

    def parsed(self, convert):
        line = self.line()
        try:
            convert(line)
        except ValueError:
            raise Typed from None
        self.push()

    def do_int(self):
        self.parsed(lambda line: line in {b"00", b"01"} or int(line, 0))

    def do_long(self):
        self.parsed(lambda line: int(line.removesuffix(b"L"), 0))

    def do_float(self):
        self.parsed(float)

    # Text and bytes

    def do_string(self):
        line = self.line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
            raise Typed
        self.odd = self.odd or not line[1:-1].isalnum()
        self.push(Text(line[1:-1].decode("latin1")))

    def eight_bit(self, raw):
        self.push(Text(raw.decode("latin1")) if raw.isascii() else UNKNOWN)

    def do_binstring(self):
        self.eight_bit(self.take(self.number(4, signed=True)))

    def do_short_binstring(self):
        self.eight_bit(self.take(self.number(1)))

    def do_unicode(self):
        line = self.line()
        try:
            self.push(Text(line.decode("raw_unicode_escape")))
        except UnicodeDecodeError:
            raise Broken from None

    def counted_text(self, width):
        raw = self.take(self.number(width))
        try:
            self.push(Text(raw.decode("utf-8", "surrogatepass")))
        except UnicodeDecodeError:
            raise Broken from None

    def do_binunicode(self):
        self.counted_text(4)

    def do_short_binunicode(self):
        self.counted_text(1)

    def do_binunicode8(self):
        self.counted_text(8)

    def do_binbytes(self):
        self.fixed(self.number(4))

    def do_short_binbytes(self):
        self.fixed(self.number(1))

    def do_binbytes8(self):
        self.fixed(self.number(8))

    do_bytearray8 = do_binbytes8

    def do_next_buffer(self):
        self.push()

    def do_readonly_buffer(self):
        if not self.stack or self.stack[-1] is MARK:
            raise Typed  # without a list of buffers it never comes so far

    # Containers

    def do_empty_list(self):
        self.push()

    do_empty_dict = do_empty_tuple = do_empty_set = do_empty_list

    def from_mark(self):
        self.above_mark()
        self.push()

    do_list = do_tuple = do_frozenset = from_mark

    def do_dict(self):
        items = self.above_mark()
        self.push()
        if len(items) % 2:
            raise Broken

    def do_tuple1(self):
        self.replaced(1)

    def do_tuple2(self):
        self.replaced(2)

    def do_tuple3(self):
        self.replaced(3)

    def do_append(self):
        self.pop()
        self.top()

    def do_setitem(self):
        self.pop()
        self.pop()
        self.top()

    def do_appends(self):
        self.above_mark()
        self.top()

    do_additems = do_appends

    def do_setitems(self):
        items = self.above_mark()
        self.top()
        if len(items) % 2:
            raise Broken

    # Memo

    def fetch(self, index):
        if index not in self.memo:
            raise Broken
        self.push(self.memo[index])

    def keep(self, index):
        if index > len(self.memo):
            self.odd = self.odd or index > len(self.memo) + GAP
        self.memo[index] = self.top()

    def indexed(self):
        line = self.line()
        if not line.isdigit() or (line[:1] == b"0" and line != b"0"):
            self.odd = True
        try:
            return int(line)
        except ValueError:
            raise Typed from None

    def do_get(self):
        self.fetch(self.indexed())

    def do_binget(self):
        self.fetch(self.number(1))

    def do_long_binget(self):
        self.fetch(self.number(4))

    def do_put(self):
        self.keep(self.indexed())

    def do_binput(self):
        self.keep(self.number(1))

    def do_long_binput(self):
        self.keep(self.number(4))

    def do_memoize(self):
        if self.memo and max(self.memo) >= len(self.memo):
            self.odd = True  # C and Python number on differently after a gap
        self.keep(len(self.memo))

    # Imports and calls

    def imported(self, module, name):
        if self.protocol < 3:
            module = RENAMED_MODULES.get(module, module)
        self.globals.add(ascii(f"{module}.{name}")[1:-1])  # as reports show it
        self.push(OTHER)

    def names(self):
        try:
            return self.line().decode(), self.line().decode()
        except UnicodeDecodeError:
            raise Broken from None

    def do_global(self):
        self.imported(*self.names())

    def do_stack_global(self):
        name, module = self.pop(), self.pop()
        if isinstance(name, Text) and isinstance(module, Text):
            self.imported(module.text, name.text)
        elif UNKNOWN in {name, module} and OTHER not in {name, module}:
            self.odd = True
            self.push(OTHER)
        else:
            raise Typed

    def extension(self, size):
        self.number(size)
        self.push(OTHER)
        self.odd = True  # the registry is the loader's

    def do_ext1(self):
        self.extension(1)

    def do_ext2(self):
        self.extension(2)

    def do_ext4(self):
        self.extension(4)

    def do_reduce(self):
        self.replaced(2, UNKNOWN)

    do_newobj = do_reduce

    def do_newobj_ex(self):
        self.replaced(3, UNKNOWN)

    def do_inst(self):
        module, name = self.names()
        self.imported(module, name)
        self.pop()
        self.above_mark()
        self.push(UNKNOWN)

    def do_obj(self):
        if not self.above_mark():
            raise Broken
        self.push(UNKNOWN)

    def do_build(self):
        self.pop()
        self.top()

    def do_persid(self):
        self.line()
        self.push(UNKNOWN)

    def do_binpersid(self):
        self.replaced(1, UNKNOWN)


def compare(data, **windows):
    """Assert that machine and reference agree on `data`; the verdict, "refused" where only the machine gives up."""
    ours, theirs = run(BytesSource(data), **windows), Reference(data).follow()
    shown = (data, theirs.verdict, [(finding.rule, finding.message) for finding in ours.findings])
    rules = {finding.rule for finding in ours.findings}
    gave_up = bool(rules & STRICTER) or len(ours.findings) >= MAX_FINDINGS or theirs.odd
    if theirs.verdict == "whole":
        if ours.end is None:
            assert gave_up, shown
            assert ours.findings, shown
            return "refused"
        assert (ours.end, ours.opcodes, ours.globals) == (theirs.end, theirs.count, theirs.globals), shown
        assert ours.findings or theirs.end == len(data), shown
    elif theirs.verdict == "broken":
        assert ours.end is None, shown
        assert ours.findings, shown
    else:
        assert ours.findings, shown
    return theirs.verdict


WORDS = (
    b"a",
    b"os",
    b"system",
    b"builtins",
    b"__builtin__",
    b"list",
    b"posix",
    b"collections",
    b"OrderedDict",
)
SIMPLE = b"(.012NRbadesu]})tlN\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98"


def argument(rng):
    """One opcode with an argument."""
    word = rng.choice(WORDS)
    small = rng.choice((0, 0, 1, 1, 2, 3, rng.randrange(256)))
    return rng.choice(
        (
            b"K" + bytes([small]),
            b"M" + bytes([small, 1]),
            b"J" + rng.randbytes(4),
            b"G" + rng.randbytes(8),
            b"I" + rng.choice((b"0", b"01", b"00", b"-7", b"12345678901234567890", b"07", b"x", b"")) + b"\n",
            b"L" + rng.choice((b"5L", b"5", b"-0L", b"zL")) + b"\n",
            b"F" + rng.choice((b"1.5", b"-2e9", b"nan", b"1_0", b"abc")) + b"\n",
            b"S'" + word + rng.choice((b"'\n", b"'\n", b"\n")),
            b"V" + word + b"\n",
            b"T" + len(word).to_bytes(4, "little") + word,
            b"U" + bytes([len(word)]) + word,
            b"X" + len(word).to_bytes(4, "little") + word,
            b"\x8c" + bytes([len(word)]) + word,
            b"\x8d" + len(word).to_bytes(8, "little") + word,
            b"B" + len(word).to_bytes(4, "little") + word,
            b"C" + bytes([len(word)]) + word,
            b"\x8e" + len(word).to_bytes(8, "little") + word,
            b"\x96" + len(word).to_bytes(8, "little") + word,
            b"\x8a\x02\xff\x01",
            b"\x8b\x03\0\0\0abc",
            b"c" + word + b"\n" + rng.choice(WORDS) + b"\n",
            b"\x8c\x02os\x8c" + bytes([len(word)]) + word + b"\x93",
            b"(i" + word + b"\n" + rng.choice(WORDS) + b"\n",
            b"(" + b"cos\nsystem\n" + b"o",
            b"P" + word + b"\n",
            b"NQ",
            b"}(" + b"N" * small + b"u",
            b"(" + b"N" * small + b"d",
            b"](" + b"N" * small + b"e",
            b"\x82" + bytes([small]),
            b"\x83" + bytes([small, 1]),
            b"\x84" + bytes([small, 1, 0, 0]),
            b"g" + str(small).encode() + b"\n",
            b"p" + str(small).encode() + b"\n",
            b"h" + bytes([small]),
            b"q" + bytes([small]),
            b"j" + small.to_bytes(4, "little"),
            b"r" + small.to_bytes(4, "little"),
            b"\x80" + bytes([rng.choice((2, 4, 5, 6))]),
        )
    )


def likely(rng, steps):
    """A stream that mostly holds: an opcode that the reference cannot follow is taken back."""
    start = rng.choice((b"", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    body = start
    for _ in range(steps):
        piece = bytes([rng.choice(SIMPLE)]) if rng.random() < 0.5 else argument(rng)
        if piece == b"." or Reference(body + piece + b"N.").follow().verdict != "whole":
            continue
        body += piece
    if rng.random() < 0.4 and start > b"\x80\x03":
        body = start + b"\x95" + (len(body) - len(start) + 2).to_bytes(8, "little") + body[len(start) :]
    return body + b"N."


def wild(rng, steps):
    """Any opcodes in any order."""
    pieces = (bytes([rng.choice(SIMPLE)]) if rng.random() < 0.5 else argument(rng) for _ in range(steps))
    return b"".join(pieces) + b"."


def damaged(data, rng):
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(changed))
        changed[at] = rng.choice((rng.randrange(256), changed[at] ^ 1 << rng.randrange(8), *b"(.0Rb"))
    return bytes(changed[: rng.choice((len(changed), len(changed), len(changed), at + 1))])


@pytest.mark.parametrize("windows", [{}, {"window": 16, "slack": 512}], ids=["whole", "small windows"])
def test_random_streams_get_the_same_verdict_end_count_and_imports(windows):
    rng = random.Random(11)
    verdicts = {"whole": 0, "broken": 0, "typed": 0, "refused": 0}
    for _ in range(700):
        stream = likely(rng, rng.randint(1, 20))
        forced = stream[:-2] + argument(rng) + b"N."
        for data in (
            stream,
            forced,
            damaged(stream, rng),
            damaged(stream, rng),
            wild(rng, rng.randint(1, 8)),
        ):
            verdicts[compare(data, **windows)] += 1
    assert min(verdicts["whole"], verdicts["broken"]) > 500
    assert verdicts["typed"] > 20
    assert verdicts["refused"] < verdicts["whole"] / 10


def test_every_opcode_is_generated_and_followed():
    rng = random.Random(12)
    followed = set()
    for _ in range(1500):
        data = likely(rng, 12) if rng.random() < 0.5 else wild(rng, 6)
        reference = Reference(data)
        reference.follow()
        followed |= reference.seen
    assert {opcode.name for opcode in pickletools.opcodes} - followed == set()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_damaged_rows_that_the_machine_reads_by_learned_shapes_get_the_same_verdict(protocol):
    rng = random.Random(13)
    rows = [
        {"id": n, "name": f"w{n}", "at": (n % 7, 1.5), "tags": ["a", str(n), None, True]} for n in range(90)
    ]
    whole = pickle.dumps(rows, protocol)
    assert compare(whole) == "whole"
    for _ in range(25):
        compare(damaged(whole, rng))


@pytest.mark.parametrize("protocol", range(6))
def test_what_the_pickler_writes_is_whole_for_both(protocol):
    value = {
        "a": [1, -(2**70), 2.5, None, True, b"xy", "ä"],
        "b": ({1, 2}, frozenset({3}), bytearray(b"z"), [[[]]]),
    }
    data = pickle.dumps(value, protocol)
    assert compare(data) == "whole"
    reference = Reference(data).follow()
    assert (reference.end, reference.count) == (len(data), sum(1 for _ in pickletools.genops(data)))


def test_reference_itself_agrees_with_the_unpickler_about_plain_data():
    """Streams without imports are loaded for real, by both unpicklers of CPython with classes taken away."""

    def no_class(module, name):
        raise pickle.UnpicklingError("no imports here")

    rng = random.Random(14)
    loaded = 0
    for _ in range(1500):
        stream = likely(rng, rng.randint(1, 10))
        data = damaged(stream, rng) if rng.random() < 0.5 else stream
        reference = Reference(data).follow()
        try:
            for unpickler in (pickle.Unpickler, pickle._Unpickler):  # the C one and its twin
                one = type("Bare", (unpickler,), {"find_class": staticmethod(no_class)})(io.BytesIO(data))
                one.load()
        except Exception:  # noqa: BLE001 - any exception of theirs is a refusal
            continue
        loaded += 1
        assert reference.verdict == "whole", data
    assert loaded > 100
