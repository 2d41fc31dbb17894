"""What every store keeps to, whatever it keeps things in: how envelopes join, how names are found, what is sought."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from steelyard.errors import Malformed, WrongUsage
from steelyard.evidence import MAX_SIGNATURES, Evidence
from steelyard.policy import LINEAGE, REVOCATION
from steelyard.store_index import issued_at

MAX_LINEAGE = 64
MIN_PREFIX = 6

_HEX = re.compile(r"[0-9a-f]{1,64}")


def joined(known: Evidence, new: Evidence) -> Evidence:
    """One envelope with the signatures and fields of both. WrongUsage when it would have too many signatures."""
    seen = {(item.keyid, item.sig) for item in known.signatures}
    added = tuple(item for item in new.signatures if (item.keyid, item.sig) not in seen)
    signatures = known.signatures + added
    if len(signatures) > MAX_SIGNATURES:
        raise WrongUsage(
            f"evidence {known.id} would have {len(signatures)} signatures, at most {MAX_SIGNATURES}"
        )
    return replace(known, signatures=signatures, extra={**new.extra, **known.extra})


def bearing_on(
    sha256: str,
    about: Callable[[str, str | None], Sequence[str]],
    read: Callable[[str], Evidence],
) -> list[Evidence]:
    """All that bears on the digest `sha256` (hex), oldest first; see Store.evidence_for.

    about: the ids of evidence about a digest, of one type or of any.  read: an envelope by its id.
    """
    found: dict[str, Evidence] = {}
    seen, wanted = {sha256}, [sha256]
    while wanted:
        subject = wanted.pop()
        for key in about(subject, None):
            if key not in found:
                found[key] = read(key)
            source = source_of(found[key])
            if source and source not in seen:
                seen.add(source)
                wanted.append(source)
        if len(seen) > MAX_LINEAGE:
            raise Malformed(f"the lineage of {sha256} names over {MAX_LINEAGE} models", rule="store/lineage")
    for key in [key for key, item in found.items() if item.statement.predicate_type != REVOCATION]:
        for revocation in about(key, REVOCATION):
            if revocation not in found:
                found[revocation] = read(revocation)
    return oldest_first(found.values())


def source_of(evidence: Evidence) -> str | None:
    """The digest that a lineage statement names as its source; absent in any other."""
    if evidence.statement.predicate_type != LINEAGE:
        return None
    source = evidence.statement.predicate.get("source")
    digest = source.get("digest") if isinstance(source, dict) else None
    sha256 = digest.get("sha256") if isinstance(digest, dict) else None
    return sha256 if isinstance(sha256, str) else None


def oldest_first(items: Iterable[Evidence]) -> list[Evidence]:
    return sorted(items, key=lambda item: (issued_at(item), item.id))


def check_prefix(text: str, what: str) -> None:
    """Raises WrongUsage for what cannot be the beginning of a digest."""
    if not _HEX.fullmatch(text) or len(text) < MIN_PREFIX:
        raise WrongUsage(
            f"no {what} is called {text!r}; give its name or {MIN_PREFIX} or more digits of its digest"
        )


def only(keys: Sequence[str], what: str) -> str:
    """The one that was found. Raises WrongUsage for none or several."""
    if not keys:
        raise WrongUsage(f"there is no {what} in the store; see `steelyard {what.split()[0]} ls`")
    if len(keys) > 1:
        listed = ", ".join(key[:16] for key in sorted(keys)[:8])
        raise WrongUsage(f"{what} is ambiguous: {listed}; give more of the digest")
    return keys[0]
