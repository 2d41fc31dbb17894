"""Whether a file that another format reads as text is also a program for a pickle loader.

Protocol 0 is text: `cos`, `system`, `(Vtrue`, `tR.` are four lines of prose, of YAML or of a vocabulary to whoever
looks at the name. The loader does not look at the name, and it needs no STOP: what was called before the stream breaks
off has been called. A word list may begin with two lines that read as an import ("cat", "dog"), so an import alone
counts only where the stream also reaches its STOP. No prose runs until the machine gives up counting.
"""

from typing import Final

from steelyard.formats.base import ByteSource
from steelyard.formats.pickle_machine import run
from steelyard.formats.pickle_nested import begins_plain

# What the machine says of a call, and of an object made from arguments.
_CALLS: Final = frozenset({"pickle/call", "pickle/instance", "pickle/arguments"})
# Of a long text only this much is searched for an import before the machine runs.
MAX_SEARCHED_BYTES = 4 << 20


def runs_as_pickle(source: ByteSource) -> str | None:
    """What `source` imports when a pickle loader reads it from its first byte, None when it is no such program."""
    if source.size == 0 or source.read(0, 1) == b"\x80":  # PROTO is no text: the pickle formats claim it
        return None
    if not begins_plain(source.read(0, min(source.size, MAX_SEARCHED_BYTES))):
        return None
    outcome = run(source)
    if any(finding.rule == "pickle/limit" for finding in outcome.findings):
        return "more than can be followed"
    called = any(finding.rule in _CALLS for finding in outcome.findings)
    if outcome.globals and (called or outcome.end is not None):
        return min(outcome.globals)
    return None
