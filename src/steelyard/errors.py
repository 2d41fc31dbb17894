"""Every error Steelyard raises on purpose. The command line maps each branch to one exit code.

SteelyardError                 3  could not decide
|-- WrongUsage                 2  arguments, configuration or policy that cannot be used as written
|-- Refused                    1  a decided no; carries the unmet rules
|   `-- Exhausted              1  a limit or budget has no room; carries which one and when to ask again
|-- Untrusted                  1  a signature, digest or chain does not hold
|-- Malformed                  3  bytes break a format; carries rule and offset
`-- Unavailable                3  disk, port, engine or upstream does not answer

Misuse of our own API is ValueError or TypeError and is never caught.
"""


class SteelyardError(Exception):
    """Root of the tree. `message` says what was found, what was expected and the next step."""

    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class WrongUsage(SteelyardError):
    """What the operator wrote (arguments, configuration, policy) cannot be used as written."""

    exit_code = 2


class Refused(SteelyardError):
    """A decided no. `rules` holds one line for each rule that is not met."""

    exit_code = 1

    def __init__(self, message: str, rules: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.rules = rules


class Exhausted(Refused):
    """A limit or budget has no room. `limit` names it ("rpm", "tpm", "rpd", "tpd", "budget", "failures").

    `retry_after_s`: when asking again may help; absent when it will not.  `fields`: HTTP fields for the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        retry_after_s: int | None,
        fields: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message, (f"limit/{limit}",))
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.fields = fields

    @property
    def code(self) -> str:
        """OpenAI's word: "insufficient_quota" for money, "rate_limit_exceeded" for the rest."""
        return "insufficient_quota" if self.limit == "budget" else "rate_limit_exceeded"


class Untrusted(SteelyardError):
    """A signature, digest, proof or chain does not hold."""

    exit_code = 1


class Malformed(SteelyardError):
    """Bytes break a format. `rule` names the broken clause, `offset` (bytes, absent if unknown) the place."""

    def __init__(self, message: str, *, rule: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        self.offset = offset


class Unavailable(SteelyardError):
    """Disk, port, engine or upstream does not answer."""
