"""A detached model signature in the tree: a Sigstore bundle. Whether it holds is for `steelyard signature verify`.

Here it is only recognised, so that a signed model is not refused for its signature. Nothing loads it.
"""

from collections.abc import Mapping

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Format, Report, Rule
from steelyard.formats.jsonfile import PARSE_RULES, parse

MAX_BYTES = 32 << 20
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle"
RULES: Mapping[str, Rule] = {
    **PARSE_RULES,
    "signature/size": Rule(
        "a text that exhausts whoever reads it", "remove the file, or sign the model again"
    ),
    "signature/bundle": Rule("a file that passes for a signature and is none", "remove the file"),
}


class SignatureFormat:
    """Claims *.sig and *.sigstore that begin as a JSON object."""

    name = "signature"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        return path.lower().endswith((".sig", ".sigstore")) and head.lstrip()[:1] == b"{"

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002
        if source.size > MAX_BYTES:
            raise Malformed(f"{source.size} bytes; at most {MAX_BYTES} are read", rule="signature/size")
        value = parse(source.read(0, source.size), max_bytes=MAX_BYTES)
        kind = value.get("mediaType") if isinstance(value, dict) else None
        if not isinstance(kind, str) or not kind.startswith(MEDIA_TYPE):
            raise Malformed(f"not a Sigstore bundle: media type {str(kind)[:80]!r}", rule="signature/bundle")
        return Report(self.name, {"media_type": kind[:80]})


FORMAT: Format = SignatureFormat()
