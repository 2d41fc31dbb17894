"""Plain data in a pickle: the classes of Python's standard library that files of numbers and settings hold.

Sources: `object.__reduce_ex__` of each class as CPython 3.8 to 3.13 write it, checked against pickles of every
protocol in the tests.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from steelyard.formats.pickle_values import (
    FLOAT,
    LEAVES,
    LONG,
    Blob,
    Global,
    Misfit,
    Node,
    Spec,
    Value,
    node_of,
)
from steelyard.formats.pickled_shapes import (
    attributes_of,
    fit,
    is_bytes,
    is_global,
    is_int,
    is_kind,
    is_plain,
    items_of,
    pairs_of,
    size_of,
)

MAX_KEY_WEIGHT = 4096  # hashing a tuple walks all it unfolds to, each time
FRACTION = re.compile(r"-?[0-9]{1,4096}(/[0-9]{1,4096})?")
ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9][A-Za-z0-9_+-]{0,31}){0,2}")
DECIMAL = re.compile(r"[+-]?([0-9.]{1,4096}(E[+-]?[0-9]{1,18})?|Infinity|s?NaN[0-9]{0,64})", re.IGNORECASE)


def _bytes_of_text(args: Sequence[Value]) -> Value:
    """`_codecs.encode(text, 'latin1')`, how protocols 0-2 write bytes. Other codecs can decompress or unhex."""
    fit(len(args) == 2 and args[1] == "latin1", "(text, 'latin1')")
    text = args[0]
    if isinstance(text, str):
        fit(all(ord(letter) < 256 for letter in text), "text that latin1 can encode")
        return text.encode("latin1")
    if isinstance(text, Blob) and text.kind == "text":
        return Blob("bytes", text.size)
    raise Misfit("expected (text, 'latin1')")


def _bytes(args: Sequence[Value]) -> Value:
    fit(not args, "no argument: bytes(n) allocates n bytes")
    return b""


def _bytearray(args: Sequence[Value]) -> Value:
    if not args:
        return Blob("bytearray", 0)
    if len(args) == 2:
        text = args[0]
        fit(args[1] in {"latin-1", "latin1"}, "(text, 'latin-1')")
        fit(isinstance(text, str) or (isinstance(text, Blob) and text.kind == "text"), "(text, 'latin-1')")
        return Blob("bytearray", len(text) if isinstance(text, str) else size_of(text))
    fit(len(args) == 1 and is_bytes(args[0]), "(bytes,): bytearray(n) allocates n bytes")
    return Blob("bytearray", size_of(args[0]))


def _set(kind: str) -> Callable[[Sequence[Value]], Value]:
    def call(args: Sequence[Value]) -> Value:
        fit(not args or (len(args) == 1 and is_kind(args[0], "list")), "() or (list,)")
        node = node_of(kind)
        if args and isinstance(args[0], Node):
            node.weight, node.depth = args[0].weight, args[0].depth
            fit(not isinstance(args[0].fact, int) or args[0].fact <= MAX_KEY_WEIGHT, "small items")
        return node

    return call


def _complex(args: Sequence[Value]) -> Value:
    fit(len(args) == 2 and all(part is FLOAT for part in args), "(float, float)")
    return node_of("complex")


def _ints(kind: str, least: int, most: int) -> Callable[[Sequence[Value]], Value]:
    def call(args: Sequence[Value]) -> Value:
        fit(least <= len(args) <= most, f"{least} to {most} integers")
        fit(all(arg is None or (type(arg) is int and abs(arg) < 1 << 62) for arg in args), "integers")
        return node_of(kind)

    return call


def _decimal(args: Sequence[Value]) -> Value:
    fit(len(args) == 1 and isinstance(args[0], str) and bool(DECIMAL.fullmatch(args[0])), "(number as text,)")
    return node_of("Decimal")


def _instant(size_bytes: int) -> Callable[[Sequence[Value]], Value]:
    def call(args: Sequence[Value]) -> Value:
        fit(len(args) in {1, 2} and isinstance(args[0], bytes), f"({size_bytes} bytes[, timezone])")
        fit(size_of(args[0]) == size_bytes, f"{size_bytes} bytes")
        fit(len(args) == 1 or is_kind(args[1], "timezone"), "a fixed timezone")
        return node_of("instant")

    return call


def _timezone(args: Sequence[Value]) -> Value:
    fit(1 <= len(args) <= 2 and is_kind(args[0], "timedelta"), "(timedelta[, name])")
    fit(len(args) == 1 or isinstance(args[1], str), "a name as text")
    return node_of("timezone")


def _ordered(args: Sequence[Value]) -> Value:
    fit(not args or (len(args) == 1 and is_kind(args[0], "list")), "() or a list of pairs")
    node = node_of("OrderedDict")
    if args and isinstance(args[0], Node):
        node.weight, node.depth = args[0].weight, args[0].depth
        for pair in args[0].kept or []:
            fit((isinstance(pair, tuple) and len(pair) == 2) or is_kind(pair, "list", "tuple"), "pairs")
    return node


def _ordered_state(_node: Node, state: Value) -> None:
    """`module.state_dict()` carries one attribute, `_metadata`: module path -> {'version': n}."""
    pairs = pairs_of(state, "the state")
    fit([name for name, _ in pairs] == ["_metadata"], "the one attribute _metadata")
    fit(is_kind(pairs[0][1], "OrderedDict", "dict"), "a mapping for _metadata")


def _counter(args: Sequence[Value]) -> Value:
    fit(not args or (len(args) == 1 and is_kind(args[0], "dict")), "() or (dict,)")
    node = node_of("Counter")
    if args and isinstance(args[0], Node):
        node.weight, node.depth = args[0].weight, args[0].depth
    return node


FACTORIES = frozenset({"list", "dict", "set", "int", "float", "str", "bool", "tuple"})


def _defaultdict(args: Sequence[Value]) -> Value:
    """The factory is called on every missing key, so only empty builtins may be one."""
    fit(len(args) <= 1, "() or (factory,)")
    if args and args[0] is not None:
        factory = args[0]
        empty = isinstance(factory, Global) and factory.module == "builtins" and factory.name in FACTORIES
        fit(
            empty or is_global(factory, "collections.OrderedDict"),
            f"a factory out of {', '.join(sorted(FACTORIES))} and OrderedDict",
        )
    return node_of("defaultdict")


def _deque(args: Sequence[Value]) -> Value:
    fit(not args or items_of(args[0], "the items") == (), "() or ((), maxlen)")
    fit(len(args) < 2 or (len(args) == 2 and is_int(args[1])), "a maxlen")
    return node_of("deque")


# Names, places and numbers


def _uuid_state(_node: Node, state: Value) -> None:
    for name, value in attributes_of(state):
        fit(name in {"int", "is_safe"}, "the attribute int")
        fit(value is None or value is LONG or type(value) is int, "an integer")


def _path(args: Sequence[Value]) -> Value:
    """A path is a name: nothing is opened until somebody asks for it."""
    fit(len(args) <= 64 and all(isinstance(part, str) for part in args), "parts as text")
    return node_of("path")


def _fraction(args: Sequence[Value]) -> Value:
    """As text no exponent: '1e999999999' would be computed."""
    if len(args) == 2:
        fit(all(value is LONG or type(value) is int for value in args), "(numerator, denominator)")
    else:
        fit(
            len(args) == 1 and isinstance(args[0], str) and bool(FRACTION.fullmatch(args[0])),
            "a fraction as text",
        )
    return node_of("fraction")


def _address(args: Sequence[Value]) -> Value:
    fit(len(args) == 1 and (args[0] is LONG or isinstance(args[0], int | str)), "an address")
    return node_of("address")


def _zone(args: Sequence[Value]) -> Value:
    """`pytz._p` and `ZoneInfo._unpickle` read the time zone of that name from their own data folder."""
    fit(1 <= len(args) <= 4 and isinstance(args[0], str), "the name of a zone")
    fit(bool(ZONE.fullmatch(str(args[0]))) and all(is_plain(arg) for arg in args), "the name of a zone")
    return node_of("timezone")


def _getattr(args: Sequence[Value]) -> Value:
    """One attribute of one class, which protocols 2 and 3 cannot name otherwise."""
    fit(
        len(args) == 2 and is_global(args[0], "zoneinfo.ZoneInfo") and args[1] == "_unpickle",
        "ZoneInfo._unpickle",
    )
    return Global("zoneinfo", "ZoneInfo._unpickle", Spec(_zone))


def _no_arguments(kind: str) -> Callable[[Sequence[Value]], Value]:
    def call(args: Sequence[Value]) -> Value:
        fit(not args, "no arguments")
        return node_of(kind)

    return call


def _namespace_state(_node: Node, state: Value) -> None:
    attributes_of(state)


def _pattern(args: Sequence[Value]) -> Value:
    """`re._compile(pattern, flags)`: short patterns compile in microseconds; none is searched while loading."""
    fit(len(args) == 2 and isinstance(args[0], str) and is_int(args[1], 0, 511), "(pattern, flags)")
    return node_of("pattern")


def _array(args: Sequence[Value]) -> Value:
    """`array._array_reconstructor(array, code, format, bytes)`, or `array(code, list)` of protocols 0-2."""
    if len(args) == 2:
        fit(isinstance(args[0], str) and len(args[0]) == 1 and is_kind(args[1], "list"), "(code, list)")
    else:
        fit(
            len(args) == 4 and is_global(args[0], "array.array") and is_int(args[2], 0, 21),
            "(array, code, format, bytes)",
        )
        fit(
            isinstance(args[1], str) and len(args[1]) == 1 and is_bytes(args[3]),
            "(array, code, format, bytes)",
        )
    return node_of("array")


def _type_of(args: Sequence[Value]) -> Value:
    """How the type of None is written."""
    fit(len(args) == 1 and args[0] is None, "(None)")
    return node_of("type")


def _pure(args: Sequence[Value]) -> Value:
    """A builtin that only computes: of plain values and small containers of them."""
    for arg in args:
        small = (
            isinstance(arg, Node)
            and arg.weight <= MAX_KEY_WEIGHT
            and arg.kind in {"list", "tuple", "dict", "set"}
        )
        fit(type(arg) in LEAVES or isinstance(arg, tuple) or (small and is_plain(arg)), "small plain values")
    return node_of("computed")


# copyreg


def _made(kind: Value, args: Sequence[Value]) -> Node:
    new = kind.spec.new if isinstance(kind, Global) and kind.spec else None
    if new is None or not isinstance(kind, Global):
        raise Misfit("expected a listed class")
    node = new(args)
    if not isinstance(node, Node):
        raise Misfit("expected a listed class")
    if node.made_by is None:
        node.made_by = kind
    return node


def _reconstructor(args: Sequence[Value]) -> Value:
    """`copyreg._reconstructor(class, base, state)`, how protocols 0 and 1 write objects."""
    fit(len(args) == 3, "(class, base, state)")
    kind, base, state = args
    if is_global(base, "builtins.object"):
        fit(state is None, "(class, object, None)")
        return _made(kind, ())
    if is_global(base, "builtins.tuple"):
        return _made(kind, items_of(state, "the fields"))
    fit(is_global(base, "builtins.dict") and is_kind(state, "dict"), "object, dict or tuple as the base")
    node = _made(kind, ())
    fit(node.kind == "mapping" and isinstance(state, Node), "a class built on dict")
    if isinstance(state, Node):
        state.held = True
        node.weight, node.depth = state.weight, state.depth
    return node


def _newobj(args: Sequence[Value]) -> Value:
    """`copyreg.__newobj__(class, *arguments)`."""
    fit(len(args) >= 1, "(class, *arguments)")
    return _made(args[0], args[1:])


_DATA = Spec(data=True)
_PURE = Spec(_pure)

PLAIN: Mapping[str, Spec] = {
    "_codecs.encode": Spec(_bytes_of_text),
    "builtins.bytes": Spec(_bytes, data=True),
    "builtins.bytearray": Spec(_bytearray, data=True),
    "builtins.set": Spec(_set("set"), data=True),
    "builtins.frozenset": Spec(_set("frozenset"), data=True),
    "builtins.complex": Spec(_complex, data=True),
    "builtins.range": Spec(_ints("range", 3, 3)),
    "builtins.slice": Spec(_ints("slice", 3, 3)),
    **{f"builtins.{name}": Spec(_pure, data=True) for name in sorted(FACTORIES - {"set"})},
    **{f"builtins.{name}": _PURE for name in ("abs", "len", "max", "min", "round", "sorted", "sum")},
    "builtins.object": _DATA,
    "builtins.Ellipsis": _DATA,
    "builtins.NotImplemented": _DATA,
    "builtins.type": Spec(_type_of),
    "copyreg._reconstructor": Spec(_reconstructor),
    "copyreg.__newobj__": Spec(_newobj),
    "array._array_reconstructor": Spec(_array),
    "array.array": Spec(_array, data=True),
    "uuid.UUID": Spec(new=_no_arguments("uuid"), build=_uuid_state),
    "fractions.Fraction": Spec(_fraction),
    "ipaddress.IPv4Address": Spec(_address),
    "ipaddress.IPv6Address": Spec(_address),
    **{
        f"{module}.{flavour}{name}": Spec(_path)
        for module in ("pathlib", "pathlib._local")
        for flavour in ("", "Pure")
        for name in ("PosixPath", "WindowsPath")
    },
    "types.SimpleNamespace": Spec(_no_arguments("namespace"), build=_namespace_state),
    "argparse.Namespace": Spec(new=_no_arguments("namespace"), build=_namespace_state),
    "re._compile": Spec(_pattern),
    "builtins.getattr": Spec(_getattr),
    "zoneinfo.ZoneInfo": _DATA,
    "pytz._UTC": Spec(_no_arguments("timezone")),
    "pytz._p": Spec(_zone),
    "zoneinfo.ZoneInfo._unpickle": Spec(_zone),
    "collections.OrderedDict": Spec(_ordered, build=_ordered_state),
    "collections.Counter": Spec(_counter),
    "collections.defaultdict": Spec(_defaultdict),
    "collections.deque": Spec(_deque),
    "datetime.datetime": Spec(_instant(10)),
    "datetime.date": Spec(_instant(4)),
    "datetime.time": Spec(_instant(6)),
    "datetime.timedelta": Spec(_ints("timedelta", 3, 3)),
    "datetime.timezone": Spec(_timezone),
    "decimal.Decimal": Spec(_decimal),
}
