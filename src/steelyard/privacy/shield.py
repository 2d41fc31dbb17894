"""The shield: personal data of a request is found, and each class is allowed, masked, given a stand-in or refused.

An error while looking is an error of the request: nothing goes on unlooked at. Values stay in this process; what
leaves it towards logs, metrics and the ledger are counts by class.
"""

import copy
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from steelyard.errors import Refused, SteelyardError, Unavailable, WrongUsage
from steelyard.privacy.detect import KINDS, PERSON, Detector, Hit
from steelyard.privacy.pseudonyms import MAX_TRIES, name_word, pseudonyms
from steelyard.privacy.restore import Restorer
from steelyard.privacy.surfaces import Leaf, leaves
from steelyard.wire.call import Call

ALLOW, MASK, PSEUDONYMISE, BLOCK = "allow", "mask", "pseudonymise", "block"
ACTIONS = (ALLOW, MASK, PSEUDONYMISE, BLOCK)
DEFAULTS: Mapping[str, str] = {
    **dict.fromkeys(KINDS, PSEUDONYMISE),
    "secret": BLOCK,
    "domain": ALLOW,
    "zip": ALLOW,
}
MIN_KEY_BYTES = 16
MAX_HITS = 10_000

_SEPARATOR = "\0"  # is in no pattern, so no hit reaches over it
_WORD = re.compile(r"[^\W\d_]+")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A request that may go to an engine. counts: hits by class.  restorer: absent when nothing has a stand-in."""

    call: Call
    counts: Mapping[str, int]
    restorer: Restorer | None


class Shield:
    """actions: by class, on top of DEFAULTS.  key: draws the stand-ins.  allowed: unreadable surfaces that may pass."""

    def __init__(
        self,
        key: bytes,
        actions: Mapping[str, str] | None = None,
        *,
        detector: Detector | None = None,
        allowed: Iterable[str] = (),
    ) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise WrongUsage(
                f"the key for stand-ins has {len(key)} bytes, at least {MIN_KEY_BYTES} are needed"
            )
        self._actions = {**DEFAULTS, **(actions or {})}
        for kind, action in self._actions.items():
            if kind not in KINDS or action not in ACTIONS:
                raise WrongUsage(
                    f"privacy: {kind} = {action!r} is none of {', '.join(ACTIONS)} for a known class"
                )
        self._key = key
        self._allowed = frozenset(allowed)
        self._detector = detector or Detector([kind for kind in KINDS if self._actions[kind] != ALLOW])

    def protect(self, call: Call, conversation: bytes) -> Guarded:
        """The request as engines may see it. Raises Refused for a blocked class or a surface that cannot be read."""
        try:
            return self._protected(call, conversation)
        except SteelyardError:
            raise
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError, RuntimeError) as error:
            # The cause is cut off: its text may hold what the caller wrote.
            _log.error("the search for personal data failed: %s", type(error).__name__)
            raise Unavailable("the search for personal data failed, so the request is refused") from None

    def _protected(self, call: Call, conversation: bytes) -> Guarded:
        texts = [leaf.text for leaf in leaves(call, self._allowed)]
        joined = _SEPARATOR.join(text.replace(_SEPARATOR, " ") for text in texts)
        hits = self._detector.find(joined)
        if not hits:
            return Guarded(call, {}, None)
        counts: dict[str, int] = {}
        for hit in hits:
            counts[hit.kind] = counts.get(hit.kind, 0) + 1
        self._check(counts)
        body = copy.deepcopy(call.body)
        changed = Call(call.kind, call.model, body, call.stream)
        table = _Table(self._key, conversation, joined)
        _replace(
            list(leaves(changed, self._allowed)), hits, lambda hit, value: self._stand_in(hit, value, table)
        )
        return Guarded(changed, counts, Restorer(table.originals) if table.originals else None)

    def _check(self, counts: Mapping[str, int]) -> None:
        blocked = sorted(kind for kind in counts if self._actions[kind] == BLOCK)
        if blocked:
            raise Refused(
                f"the request holds {', '.join(blocked)}, which may not pass here",
                tuple(f"privacy:{kind}" for kind in blocked),
            )
        if sum(counts.values()) > MAX_HITS:
            raise Refused(f"the request holds more than {MAX_HITS} personal values", ("privacy:hits",))

    def _stand_in(self, hit: Hit, value: str, table: "_Table") -> str:
        if self._actions[hit.kind] == MASK:
            return f"[{hit.kind.upper()}]"
        return table.name(value) if hit.kind in (PERSON, "customer") else table.value(hit.kind, value)


class _Table:
    """What stands for what in one request. A stand-in is in no text of the caller and stands for one value only."""

    def __init__(self, key: bytes, conversation: bytes, text: str) -> None:
        self._key = key
        self._conversation = conversation
        self._text = text
        self._stands: dict[tuple[str, str], str] = {}
        self.originals: dict[str, str] = {}

    def value(self, kind: str, value: str) -> str:
        found = self._stands.get((kind, value))
        if found is None:
            for found in pseudonyms(kind, value, self._key, self._conversation):
                if found not in self._text and found not in self.originals:
                    break
            else:
                raise Refused("no stand-in could be found for a personal value", (f"privacy:{kind}",))
            self._stands[kind, value] = found
            self.originals[found] = value
        return found

    def name(self, value: str) -> str:
        """A name word by word, so that parts of it are told alone."""
        made = _WORD.sub(lambda found: self._word(found.group()), value)
        if made != value:
            self.originals.setdefault(made, value)
        return made

    def _word(self, word: str) -> str:
        if len(word) == 1:
            return word
        found = self._stands.get(("word", word))
        if found is None:
            for attempt in range(MAX_TRIES):
                found = name_word(word, self._key, self._conversation, attempt)
                if found.lower() not in self._text.lower() and found not in self.originals:
                    break
            else:
                raise Refused("no stand-in could be found for a name", (f"privacy:{PERSON}",))
            self._stands["word", word] = found
            self.originals[found] = word
        return found


def _replace(places: list[Leaf], hits: list[Hit], stand_in: Callable[[Hit, str], str]) -> None:
    """Write the stand-ins into the leaves whose texts, joined, gave the hits."""
    offset, queue = 0, iter(hits)
    hit = next(queue, None)
    for leaf in places:
        text, parts, done = leaf.text, [], 0
        while hit is not None and hit.start < offset + len(text):
            parts += [
                text[done : hit.start - offset],
                stand_in(hit, text[hit.start - offset : hit.end - offset]),
            ]
            done = min(hit.end - offset, len(text))
            rest = offset + len(text) + len(_SEPARATOR)
            # One that runs over a border goes on in the next text.
            hit = Hit(rest, hit.end, hit.kind, hit.score) if hit.end > rest else next(queue, None)
        if done:
            leaf.put("".join([*parts, text[done:]]))
        offset += len(text) + len(_SEPARATOR)
