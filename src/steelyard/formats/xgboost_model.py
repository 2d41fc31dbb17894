"""XGBoost models as JSON and as Universal Binary JSON (.ubj): numbers and names, and no program.

    UBJSON   marker and value: Z null, T F bool, i U I l L integers, d D floats, C char, S length text,
             [ ... ] array, { key value ... } object; `$ type # count` after the bracket makes a packed array.
             A length is an integer with its marker. All big-endian.

XGBoost indexes its arrays with numbers of the file, so each tree is checked: arrays of one length, children inside the
tree, features inside the model. The binary form before XGBoost 1.7 ("binf", or no magic at all) is refused.
Source: ubjson.org specification, draft 12; xgboost 3.2 doc/model.schema and src/common/json.cc.
"""

import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from struct import Struct
from typing import Final, NoReturn

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.jsonfile import CONFIG_NAMES, PARSE_RULES, XGBOOST_START, base_name, load

MAX_BYTES = 96 << 20
MAX_DEPTH = 32
MAX_VALUES = 300_000
MAX_TEXT_BYTES = 8 << 20
MAX_FINDINGS = 20

_SAVE = "Save the model again with Booster.save_model('model.ubj')."
RULES: Final[Mapping[str, Rule]] = {
    **PARSE_RULES,
    "xgboost/size": Rule("A model so large or so deep that reading it exhausts memory.", _SAVE),
    "xgboost/truncated": Rule(
        "A length that runs past the file, so that a trusting reader leaves its buffer.", _SAVE
    ),
    "xgboost/syntax": Rule("Bytes that readers of UBJSON take differently, or not at all.", _SAVE),
    "xgboost/trailing": Rule("A second file behind the model.", _SAVE),
    "xgboost/tree": Rule("A tree whose indexes leave its arrays: the library reads foreign memory.", _SAVE),
    "xgboost/shape": Rule("A file of this form that is no model of XGBoost.", _SAVE),
    "xgboost/deprecated": Rule("The old binary form, which has no lengths to check.", _SAVE),
}

_INTEGERS: Final = {
    "i": Struct(">b"),
    "U": Struct(">B"),
    "I": Struct(">h"),
    "l": Struct(">i"),
    "L": Struct(">q"),
}
_FLOATS: Final = {"d": Struct(">f"), "D": Struct(">d")}
_CODES: Final = {"i": "b", "U": "B", "I": "h", "l": "i", "L": "q", "d": "f", "D": "d"}
_UBJ_START = re.compile(rb"\{(i.|U.|L\0{7}.|l\0{3}.|I\0.)(learner|Config|Model|version)", re.DOTALL)
_OLD_START = b"binf"


@dataclass(frozen=True, slots=True)
class _Packed:
    """An array of numbers left in place."""

    code: str
    data: memoryview

    def numbers(self) -> "array[int]":
        values: array[int] = array(self.code, bytes(self.data))
        values.byteswap()
        return values


_Value = None | bool | int | float | str | _Packed | list["_Value"] | dict[str, "_Value"]


class XgboostFormat:
    """Claims UBJSON by its first key, JSON by the key `learner`, and the old binary form by its magic."""

    name = "xgboost"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        is_json = (
            path.endswith(".json") and base_name(path) not in CONFIG_NAMES and looks_like_xgboost_json(head)
        )
        return is_json or _UBJ_START.match(head) is not None or head.startswith(_OLD_START)

    def read(self, source: ByteSource, path: str) -> Report:
        head = source.read(0, min(64, source.size))
        if head.startswith(_OLD_START):
            raise Malformed("XGBoost's binary form of before 1.7", rule="xgboost/deprecated", offset=0)
        if path.endswith(".json") and looks_like_xgboost_json(head):
            value: _Value = _from_json(load(source))
        else:
            if source.size > MAX_BYTES:
                raise Malformed(f"{source.size} bytes; at most {MAX_BYTES} are read", rule="xgboost/size")
            value = _Reader(source.read(0, source.size)).whole()
        facts: dict[str, JSON] = {}
        return Report(self.name, facts, tuple(islice(_check(value, facts), MAX_FINDINGS)))


def looks_like_xgboost_json(head: bytes) -> bool:
    return XGBOOST_START.match(head) is not None


def _from_json(value: JSON) -> _Value:
    return value  # type: ignore[return-value]  # JSON's types are a part of _Value's; lists are invariant


class _Reader:
    """One UBJSON value over the whole of `data`."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._values = 0

    def _refuse(self, rule: str, message: str) -> NoReturn:
        raise Malformed(message, rule=f"xgboost/{rule}", offset=self._at)

    def _take(self, size: int) -> memoryview:
        if size < 0 or self._at + size > len(self._data):
            self._refuse("truncated", f"{size} bytes wanted, {len(self._data) - self._at} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def _marker(self) -> str:
        return chr(self._take(1)[0])

    def whole(self) -> _Value:
        value = self._value(self._marker(), 0)
        if self._at != len(self._data):
            self._refuse("trailing", f"{len(self._data) - self._at} bytes follow the model")
        return value

    def _length(self) -> int:
        marker = self._marker()
        if marker not in _INTEGERS:
            self._refuse("syntax", f"a length of type {marker!a}")
        form = _INTEGERS[marker]
        size = int(form.unpack(self._take(form.size))[0])
        if size < 0:
            self._refuse("truncated", f"a length of {size}")
        return size

    def _text(self) -> str:
        size = self._length()
        if size > MAX_TEXT_BYTES:
            self._refuse("size", f"a text of {size} bytes")
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError:
            self._refuse("syntax", "a text that is not UTF-8")

    def _value(self, marker: str, depth: int) -> _Value:
        self._values += 1
        if self._values > MAX_VALUES or depth > MAX_DEPTH:
            self._refuse("size", f"more than {MAX_VALUES} values or {MAX_DEPTH} levels")
        form = _INTEGERS.get(marker) or _FLOATS.get(marker)
        if form is not None:
            number: int | float = form.unpack(self._take(form.size))[0]
            return number
        if marker == "S":
            return self._text()
        if marker == "[":
            return self._array(depth)
        if marker == "{":
            return self._object(depth)
        if marker in "ZTF":
            return {"Z": None, "T": True, "F": False}[marker]
        if marker == "C":
            return chr(self._take(1)[0])
        raise Malformed(f"the marker {marker!a}", rule="xgboost/syntax", offset=self._at)

    def _array(self, depth: int) -> _Value:
        marker = self._marker()
        if marker == "$":
            kind = self._marker()
            if kind not in _CODES or self._marker() != "#":
                self._refuse("syntax", f"a packed array of {kind!a}")
            count = self._length()
            width = (_INTEGERS.get(kind) or _FLOATS[kind]).size
            return _Packed(_CODES[kind], self._take(count * width))
        if marker == "#":
            count = self._length()
            if count > len(self._data) - self._at:
                self._refuse("truncated", f"{count} values in {len(self._data) - self._at} bytes")
            return [self._value(self._marker(), depth + 1) for _ in range(count)]
        items: list[_Value] = []
        while marker != "]":
            items.append(self._value(marker, depth + 1))
            marker = self._marker()
        return items

    def _object(self, depth: int) -> _Value:
        found: dict[str, _Value] = {}
        while self._at < len(self._data) and self._data[self._at] != ord("}"):
            key = self._text()
            if key in found:
                self._refuse("syntax", f"the key {key[:80]!a} stands twice")
            found[key] = self._value(self._marker(), depth + 1)
        self._take(1)
        return found


def _check(value: _Value, facts: dict[str, JSON]) -> Iterator[Finding]:
    model = value.get("Model", value) if isinstance(value, dict) else None
    learner = model.get("learner") if isinstance(model, dict) else None
    booster = learner.get("gradient_booster") if isinstance(learner, dict) else None
    if not isinstance(learner, dict) or not isinstance(booster, dict):
        yield Finding("xgboost/shape", "the file holds no learner with a booster", 0)
        return
    objective = learner.get("objective")
    facts["objective"] = str(objective.get("name"))[:60] if isinstance(objective, dict) else None
    facts["booster"] = str(booster.get("name"))[:60]
    parameters = learner.get("learner_model_param")
    features = _whole(parameters.get("num_feature")) if isinstance(parameters, dict) else None
    facts["features"] = features
    holder = booster.get("gbtree", booster)
    inner = holder.get("model") if isinstance(holder, dict) else None
    trees = inner.get("trees", []) if isinstance(inner, dict) else []
    if not isinstance(trees, list):
        yield Finding("xgboost/shape", "the trees are no list")
        return
    facts["trees"] = len(trees)
    for index, tree in enumerate(trees):
        wrong = _tree_error(tree, features)
        if wrong:
            yield Finding("xgboost/tree", f"tree {index}: {wrong}", member=f"trees[{index}]")


def _whole(value: _Value) -> int | None:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) else None


def _integers(value: _Value) -> "array[int] | list[int] | None":
    if isinstance(value, _Packed):
        return value.numbers() if value.code not in "fd" else None
    if isinstance(value, list) and all(type(each) is int for each in value):
        return value  # type: ignore[return-value]  # just checked
    return None


def _size(value: _Value) -> int | None:
    if isinstance(value, _Packed):
        return len(value.data) // array(value.code).itemsize
    return len(value) if isinstance(value, list) else None


def _tree_error(tree: _Value, features: int | None) -> str | None:
    """What is wrong with one tree, None when nothing is."""
    if not isinstance(tree, dict):
        return "is no object"
    left, right = _integers(tree.get("left_children")), _integers(tree.get("right_children"))
    splits = _integers(tree.get("split_indices"))
    if left is None or right is None or splits is None:
        return "has no children or no features"
    nodes = len(left)
    sizes = {
        _size(tree.get(key)) for key in ("right_children", "parents", "split_conditions", "split_indices")
    }
    if sizes != {nodes} or not nodes:
        return f"has arrays of {nodes} and {sorted(map(str, sizes))} nodes"
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        # A leaf has no child. Children come after their parent, so no walk ever returns.
        if (a, b) != (-1, -1) and not (index < a < nodes and index < b < nodes and a != b):
            return f"node {index} has the children {a} and {b} of {nodes}"
        if a != -1 and (splits[index] < 0 or (features is not None and splits[index] >= max(features, 1))):
            return f"node {index} asks for feature {splits[index]} of {features}"
    return None


FORMAT: Final = XgboostFormat()
