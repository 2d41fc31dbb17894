"""What limits hold for a caller: those of its key, of its team and of the installation, all at once."""

from dataclasses import dataclass

from steelyard.access import Limits
from steelyard.wire.call import Call

KEY, TEAM, INSTALLATION = "key", "team", "installation"

BYTES_PER_TOKEN = 4  # of a prompt, as OpenAI's own limits estimate it

_MAXIMA = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Scope:
    """One thing that is counted. kind: KEY, TEAM or INSTALLATION.  name: whose."""

    kind: str
    name: str
    limits: Limits

    @property
    def label(self) -> str:
        """As its account is called."""
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Allowance:
    """The scopes a caller's requests count in, its own first. Compared by identity: it is a key of hot look-ups."""

    scopes: tuple[Scope, ...] = ()


UNLIMITED = Allowance()


def allowance_of(*scopes: Scope) -> Allowance:
    """The allowance of these, without an installation that limits nothing."""
    kept = tuple(scope for scope in scopes if scope.kind != INSTALLATION or not scope.limits.is_empty)
    return Allowance(kept) if kept else UNLIMITED


def installation(limits: Limits) -> Scope:
    return Scope(INSTALLATION, "all", limits)


def bound_of(call: Call, size_bytes: int, reserve_tokens: int) -> int:
    """The tokens to hold for a request of so many bytes: its prompt by its size, its answer by its own maximum.

    reserve_tokens: of an answer without a maximum. Several choices are as many answers. The prompt is an estimate.
    """
    prompt = size_bytes // BYTES_PER_TOKEN + 1
    if call.kind == "embedding":
        return prompt
    body = call.body
    most = next((body[name] for name in _MAXIMA if type(body.get(name)) is int), reserve_tokens)
    choices = max((body[name] for name in ("n", "best_of") if type(body.get(name)) is int), default=1)
    return prompt + max(most, 0) * max(choices, 1)
