"""A pickle that holds plain data only, read into values: the small lists around PyTorch's legacy storages.

A strict grammar, no machine: PROTO, FRAME, lists, dictionaries, text, whole numbers, truth values, memo, STOP. Any
other opcode is refused, so nothing can be imported or called.
"""

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource

MAX_ITEMS = 1 << 20
BATCH = 1 << 12

_TEXT = {ord("X"): 4, 0x8C: 1, ord("T"): 4, ord("U"): 1}
_NUMBER = {ord("J"): 4, ord("M"): 2, ord("K"): 1}
_BARE = {0x88: True, 0x89: False, ord("N"): None}
_PUT = {ord("q"): 1, ord("r"): 4, 0x94: 0}
_GET = {ord("h"): 1, ord("j"): 4}


class _Mark:
    """What MARK leaves on the stack."""


def read_plain(source: ByteSource, at: int, most_bytes: int) -> tuple[object, int]:
    """The value of the pickle at `at`, of at most `most_bytes`, and the offset behind its STOP.

    Raises Malformed (`pickle/opcode`, `pickle/truncated`, `pickle/memo`, `pickle/limit`).
    """
    return _Plain(source, at, most_bytes).read()


class _Plain:
    def __init__(self, source: ByteSource, at: int, most_bytes: int) -> None:
        self._source = source
        self._end = min(source.size, at + most_bytes)
        self._at = at
        self._start, self._data = at, b""
        self._stack: list[object] = []
        self._memo: list[object] = []

    def read(self) -> tuple[object, int]:
        if self._take(1) != b"\x80" or self._take(1)[0] not in range(2, 6):
            raise self._broken("pickle/opcode", "no pickle of protocol 2 to 5")
        while True:
            op = self._take(1)[0]
            if op == ord("."):
                if len(self._stack) != 1:
                    raise self._broken("pickle/stack", f"{len(self._stack)} values at STOP, expected 1")
                return self._stack[0], self._at
            self._step(op)
            if len(self._stack) > MAX_ITEMS or len(self._memo) > MAX_ITEMS:
                raise self._broken("pickle/limit", f"more than {MAX_ITEMS} items")

    def _broken(self, rule: str, message: str) -> Malformed:
        return Malformed(message, rule=rule, offset=self._at)

    def _take(self, size: int) -> bytes:
        if self._at + size > self._end:
            raise self._broken("pickle/truncated", "the plain pickle ends too early")
        place = self._at - self._start
        if place + size > len(self._data):
            self._start, place = self._at, 0
            self._data = self._source.read(self._at, min(max(size, BATCH), self._source.size - self._at))
        self._at += size
        return self._data[place : place + size]

    def _count(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _step(self, op: int) -> None:
        stack = self._stack
        if op in _TEXT:
            raw = self._take(self._count(_TEXT[op]))
            try:
                stack.append(raw.decode())
            except UnicodeDecodeError as bad:
                raise self._broken("pickle/text", "text that is not UTF-8") from bad
        elif op in _NUMBER:
            stack.append(int.from_bytes(self._take(_NUMBER[op]), "little", signed=op == ord("J")))
        elif op in _BARE:
            stack.append(_BARE[op])
        elif op in _PUT:
            if not stack or (op != 0x94 and self._count(_PUT[op]) != len(self._memo)):
                raise self._broken("pickle/memo", "a memo number out of order")
            self._memo.append(stack[-1])
        elif op in _GET:
            index = self._count(_GET[op])
            if index >= len(self._memo) or not isinstance(self._memo[index], str):
                raise self._broken("pickle/memo", "a memo number that names no text")
            stack.append(self._memo[index])
        elif op == 0x95:
            self._take(8)
        else:
            self._container(op)

    def _container(self, op: int) -> None:
        stack = self._stack
        if op == ord("]"):
            stack.append([])
        elif op == ord("}"):
            stack.append({})
        elif op == ord("("):
            stack.append(_Mark)
        elif op in b"ae":
            items = self._since_mark() if op == ord("e") else [self._pop()]
            target = self._pop()
            if not isinstance(target, list):
                raise self._broken("pickle/target", "an append to what is no list")
            target.extend(items)
            stack.append(target)
        elif op in b"su":
            items = self._since_mark() if op == ord("u") else [self._pop(), self._pop()][::-1]
            target = self._pop()
            if (
                not isinstance(target, dict)
                or len(items) % 2
                or not all(isinstance(k, str) for k in items[::2])
            ):
                raise self._broken("pickle/target", "an item that is no key and value of a dictionary")
            target.update(zip(items[::2], items[1::2], strict=True))
            stack.append(target)
        else:
            raise self._broken("pickle/opcode", f"opcode {op:#x} in a pickle that should be plain data")

    def _pop(self) -> object:
        if not self._stack:
            raise self._broken("pickle/stack", "an empty stack")
        return self._stack.pop()

    def _since_mark(self) -> list[object]:
        items: list[object] = []
        while (item := self._pop()) is not _Mark:
            items.append(item)
        return items[::-1]
