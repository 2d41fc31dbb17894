"""Ask the node beside an upstream which model the upstream has loaded. The answer holds for a minute at most."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from steelyard.digest import Digest
from steelyard.engines.upstream_member import Dial, Member, Place
from steelyard.errors import SteelyardError, Unavailable
from steelyard.evidence import Evidence, PublicKey
from steelyard.node import MAX_AGE, check
from steelyard.wire.body import dump

ASK_AGAIN_S = 15.0
HOLDS_S = MAX_AGE.total_seconds()
LIMIT_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trust:
    """keys: of the nodes whose word counts.  clock: timezone-aware now.  new_nonce: 16 to 64 unguessable hex digits."""

    keys: Callable[[], Iterable[PublicKey]]
    clock: Callable[[], datetime]
    new_nonce: Callable[[], str]


class Word:
    """What one node says of one upstream. `until` is in the event loop's seconds."""

    def __init__(self, digest: Digest, place: Place, node: Place, dial: Dial, trust: Trust) -> None:
        self._digest = digest
        self._place = place
        self._member = Member(node, dial)
        self._trust = trust
        self.until = 0.0

    async def ask(self, now_s: float) -> None:
        """Ask once; silence and refusal change nothing before the last word runs out, a wrong word ends it."""
        try:
            nonce = self._trust.new_nonce()
            evidence = await asyncio.wait_for(self._answer(nonce), LIMIT_S)
            check(
                evidence, self._trust.keys(), str(self._digest), self._place.port, nonce, self._trust.clock()
            )
        except (Unavailable, TimeoutError) as error:
            _log.warning("the node of %s: %s", self._place.origin, error)
        except SteelyardError as error:
            self.until = 0.0
            _log.warning("the node of %s is not believed: %s", self._place.origin, error.message)
        else:
            self.until = now_s + HOLDS_S

    async def close(self) -> None:
        await self._member.close()

    async def _answer(self, nonce: str) -> Evidence:
        line = await self._member.send("/identity", dump({"nonce": nonce}))
        try:
            data = await line.whole(LIMIT_S)
            if line.status == 503:  # it looked, and what it saw is not the model, or it saw nothing
                self.until = 0.0
            if line.status != 200:
                raise Unavailable(f"it answers with {line.status}: {data[:300].decode(errors='replace')}")
        finally:
            line.release()
        return Evidence.parse(data)
