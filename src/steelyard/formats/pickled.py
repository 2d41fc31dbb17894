"""The pickle format: rules, sniffing, and reports from the symbolic machine.

A pickle is a program. Ours is read, never run: see `pickle_machine` for the machine and `pickled_globals` for
what a file may import and call.
"""

import re
from collections.abc import Mapping
from typing import Final

from steelyard.formats.base import ByteSource, Report, Rule, Severity
from steelyard.formats.grok import is_quantised
from steelyard.formats.joblib_file import WRAPPER, names, read_plainly
from steelyard.formats.pickle_machine import OPCODES, Outcome, run

SUFFIXES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".dat", ".data", ".joblib", ".p")
# What torch.save wrote before it wrote zip files (`torch_legacy`): PROTO, perhaps FRAME, a number, STOP.
LEGACY_TORCH = re.compile(
    rb"\x80[\x02-\x05](?:\x95.\x00{7})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x94?\.", re.DOTALL
)

_SAVE_AGAIN = "Save the weights again as safetensors, or as a plain state_dict with torch.save."
_DAMAGED = "Fetch the file again and compare its digest with the publisher's."

RULES: Final[Mapping[str, Rule]] = {
    "pickle/global": Rule("Importing a name outside the allow-list, which loading would do.", _SAVE_AGAIN),
    "pickle/dotted": Rule(
        "Reaching any function of a module through attributes of a harmless name.", _SAVE_AGAIN
    ),
    "pickle/call": Rule("Calling a function while the file is loaded.", _SAVE_AGAIN),
    "pickle/arguments": Rule("Abusing a listed function with arguments outside its shape.", _SAVE_AGAIN),
    "pickle/instance": Rule("Creating an object of an arbitrary class while loading.", _SAVE_AGAIN),
    "pickle/build": Rule("Setting attributes or calling __setstate__ while loading.", _SAVE_AGAIN),
    "pickle/target": Rule("Calling append, extend, add or __setitem__ of an arbitrary object.", _SAVE_AGAIN),
    "pickle/global-value": Rule("Leaving a function where later code calls it.", _SAVE_AGAIN),
    "pickle/inline": Rule("Bytes between opcodes that are not the array they claim to be.", _SAVE_AGAIN),
    "joblib/ambiguous": Rule(
        "Array bytes that pickle.load would run as a program.", "Save again with joblib 1.2 or newer."
    ),
    "pickle/extension": Rule(
        "Importing through a number that only the loader's registry explains.", _SAVE_AGAIN
    ),
    "pickle/persistent": Rule("Asking the loader's own hook for an object by name.", _SAVE_AGAIN),
    "pickle/buffer": Rule("Taking data from outside the scanned file.", _SAVE_AGAIN),
    "pickle/nested": Rule("Hiding a pickle in the bytes of another for a second load.", _SAVE_AGAIN),
    "pickle/inside": Rule(
        "A second pickle that some later code loads: does anything here load it?",
        "Store the data itself, not a pickle of it.",
        Severity.REVIEW,
    ),
    "pickle/memo": Rule("Confusing scanners about which object a memo number names.", _SAVE_AGAIN),
    "pickle/cycle": Rule("Changing an object after it was judged as part of another.", _SAVE_AGAIN),
    "pickle/key": Rule("A key that cannot be hashed: the file never loaded for anyone.", _SAVE_AGAIN),
    "pickle/bomb": Rule("A few bytes that unfold to more than memory or time allow.", _SAVE_AGAIN),
    "pickle/nesting": Rule("Exhausting the stack of later code by nesting.", _SAVE_AGAIN),
    "pickle/limit": Rule("Exhausting the scanner.", _SAVE_AGAIN),
    "pickle/leftover": Rule("Running code for its effect and dropping the result.", _SAVE_AGAIN),
    "pickle/frame": Rule("Bytes that one unpickler reads and another does not.", _SAVE_AGAIN),
    "pickle/noncanonical": Rule("A number or string that two unpicklers read differently.", _SAVE_AGAIN),
    "pickle/text": Rule("Text whose meaning depends on the loader.", _SAVE_AGAIN),
    "pickle/proto": Rule(
        "A protocol this version does not know, or a change of protocol midway.", _SAVE_AGAIN
    ),
    "pickle/opcode": Rule("A byte that is no opcode: code may run before a loader reaches it.", _DAMAGED),
    "pickle/stack": Rule("A broken stream after a payload that has already run.", _DAMAGED),
    "pickle/length": Rule("A length outside its range.", _DAMAGED),
    "pickle/truncated": Rule("A cut stream: code before the cut has already run.", _DAMAGED),
    "pickle/no-stop": Rule("A cut stream: code before the cut has already run.", _DAMAGED),
    "pickle/trailing": Rule("A second payload behind the first.", _DAMAGED),
    "torch/storage": Rule("A storage that the archive does not hold as declared.", _DAMAGED),
}

_FIRST_TEXT_LINE: Final[Mapping[int, re.Pattern[bytes]]] = {
    ord("c"): re.compile(rb"c[\w.]+\r?\n[\w.]+\r?\n"),
    ord("I"): re.compile(rb"I[ +-]?\w+\n"),
    ord("L"): re.compile(rb"L[ +-]?\w+\n"),
    ord("F"): re.compile(rb"F[ +-]?[\w.+-]+\n"),
    ord("S"): re.compile(rb"S['\"][^\n]*\n"),
    ord("V"): re.compile(rb"V[^\n]*\n"),
    ord("P"): re.compile(rb"P[^\n]*\n"),
}
_FIRST_BINARY = frozenset(b"KJMGTUX")
_FIRST_BARE = frozenset(b"(]})N")  # no argument, so the next byte must be an opcode too


class PickleFormat:
    """Claims streams that begin with PROTO, and protocol 0/1 streams by a pickle-like name and first opcode."""

    name = "pickle"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        if len(head) >= 3 and head[0] == 0x80:
            # A safetensors header length may begin with these two bytes; its ninth is always "{".
            lengthy = head[4:8] == bytes(4) and head[8:9] == b"{"
            other = lengthy or is_quantised(head) or LEGACY_TORCH.match(head) is not None
            return head[1] < 16 and head[2] in OPCODES and not other
        # "P" is PERSID too: a zip would pass for a text pickle.
        if not head or head.startswith(b"PK") or not path.lower().endswith(SUFFIXES):
            return False
        line = _FIRST_TEXT_LINE.get(head[0])
        if line:
            return bool(line.match(head))
        return head[0] in _FIRST_BINARY or (
            head[0] in _FIRST_BARE and head[1:2] != b"" and head[1] in OPCODES
        )

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the content decides
        outcome = run(source, names=names)
        kind = "joblib" if ".".join(WRAPPER) in outcome.globals else self.name
        if kind == "joblib":
            outcome.findings += read_plainly(source)
        return Report(kind, facts_of(outcome), tuple(outcome.findings))


def is_pickle_like(head: bytes, path: str) -> bool:
    """Whether a file may be a pickle, which costs more to read than other files of its size."""
    return head[:1] == b"\x80" or path.lower().endswith(SUFFIXES)


def facts_of(outcome: Outcome) -> dict[str, int | list[str]]:
    """protocol, opcodes and the imported names, sorted."""
    return {
        "protocol": outcome.protocol,
        "opcodes": outcome.opcodes,
        "globals": sorted(outcome.globals),
    }


FORMAT: Final = PickleFormat()
