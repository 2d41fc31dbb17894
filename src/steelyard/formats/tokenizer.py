"""Tokenizers as text: tokenizer.json of the `tokenizers` library, vocab.txt and merges.txt.

tokenizer.json: {version, truncation, padding, added_tokens, normalizer, pre_tokenizer, post_processor,
decoder, model}. model.type is BPE (vocab {token: id}, merges ["a b"] or [[a, b]]), WordPiece and WordLevel
(vocab {token: id}) or Unigram (vocab [[token, score]], the position being the id). Source: the serde types
of github.com/huggingface/tokenizers 0.23. vocab.txt: one token a line. merges.txt: an optional "#version"
line, then two tokens a line.
"""

from collections.abc import Generator, Iterator, Mapping
from itertools import islice

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.jsonfile import (
    CONTENT_RULES,
    MAX_FINDINGS,
    PARSE_RULES,
    TOKENIZER_NAME,
    base_name,
    clip,
    examine,
    load,
    looks_like_json,
)

MAX_TEXT_BYTES = 32 << 20
MAX_LINE_BYTES = 4096
MAX_TOKENS = 1 << 22
MAX_TOKEN_ID = 1 << 24
MAX_PATTERN_CHARS = 4096
MAX_FACT_CHARS = 200

RULES: Mapping[str, Rule] = {
    "tokenizer/structure": Rule(
        attack="A tokenizer of a shape the library never writes, read in ways nobody examined.",
        mend="Write the file again with the tokenizers library.",
    ),
    "tokenizer/component": Rule(
        attack="A normaliser, pre-tokeniser or decoder of unknown type: a plug for foreign code.",
        mend="Use components that ship in the tokenizers library.",
    ),
    "tokenizer/vocabulary": Rule(
        attack="Tokens without a valid id, or too many of them.",
        mend="Give each token a whole number within the limits of docs/formats.",
    ),
    "tokenizer/duplicate-id": Rule(
        attack="Two tokens of one id: text is checked as one and answered as the other.",
        mend="Give each token an id of its own.",
    ),
    "tokenizer/merges": Rule(
        attack="Merges of tokens that do not exist, which crash or corrupt the tokeniser.",
        mend="Write vocabulary and merges from one training run.",
    ),
    "tokenizer/regex": Rule(
        attack="A pattern whose nested repetition takes exponential time on chosen text.",
        mend="Rewrite the pattern without a repetition inside a repeated group.",
    ),
    "tokenizer/text": Rule(
        attack="A token list that is binary, or whose lines no loader could have written.",
        mend="Write one token, or one pair of tokens, a line in UTF-8.",
    ),
    **PARSE_RULES,
    **CONTENT_RULES,
}

_TOP_KEYS = frozenset(
    {
        "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
        "decoder", "model",
    }
)  # fmt: skip
_COMPONENTS: Mapping[str, frozenset[str]] = {
    "normalizer": frozenset(
        {
            "BertNormalizer", "Strip", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Sequence", "Lowercase", "Nmt",
            "Precompiled", "Replace", "Prepend", "ByteLevel",
        }
    ),
    "pre_tokenizer": frozenset(
        {
            "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Delimiter", "Metaspace", "Whitespace", "Sequence",
            "Split", "Punctuation", "WhitespaceSplit", "Digits", "UnicodeScripts", "FixedLength",
        }
    ),
    "post_processor": frozenset(
        {"RobertaProcessing", "BertProcessing", "ByteLevel", "TemplateProcessing", "Sequence"}
    ),
    "decoder": frozenset(
        {
            "BPEDecoder", "ByteLevel", "WordPiece", "Metaspace", "CTC", "Sequence", "Replace", "Fuse", "Strip",
            "ByteFallback",
        }
    ),
}  # fmt: skip
_PARTS = ("normalizers", "pretokenizers", "processors", "decoders")
_TEXT_NAMES = ("vocab.txt", "merges.txt")

Facts = dict[str, JSON]


def _read_tokenizer(value: JSON, facts: Facts) -> Iterator[Finding]:
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        yield Finding("tokenizer/structure", "expected an object with a model")
        return
    if unknown := sorted(set(value) - _TOP_KEYS):
        yield Finding("tokenizer/structure", f"unknown key {clip(unknown[0])}", member=clip(unknown[0]))
    for key, known in _COMPONENTS.items():
        yield from _examine_component(key, value.get(key), known)
    model = value["model"]
    ids = yield from _read_model(model, facts)
    yield from _examine_added(value.get("added_tokens"), ids, facts)
    facts["largest_id"] = max(ids.values(), default=None)


def _examine_component(key: str, value: JSON, known: frozenset[str]) -> Iterator[Finding]:
    """One component or a Sequence of them. Depth is bounded by the JSON reader."""
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str) or kind not in known:
        yield Finding("tokenizer/component", f"{key} of type {clip(str(kind))}", member=key)
        return
    for part in _PARTS:
        parts = value.get(part)
        for each in parts if isinstance(parts, list) else ():
            yield from _examine_component(key, each, known)
    pattern = value.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if regex is not None and (
        not isinstance(regex, str) or len(regex) > MAX_PATTERN_CHARS or _is_nested(regex)
    ):
        yield Finding("tokenizer/regex", f"pattern {clip(str(regex))}", member=key)


def _is_nested(pattern: str) -> bool:
    """Whether an unbounded repetition stands inside a group that is repeated without bound.

    Possessive repetition and atomic groups do not backtrack, but are counted: no known tokenizer needs them.
    """
    groups = [False]  # does the open group hold an unbounded repetition?
    closed = False  # did the last atom close a group that holds one?
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 2
            closed = False
            continue
        if char == "[":
            at = _class_end(pattern, at)
            closed = False
        elif char == "(":
            groups.append(False)
            closed = False
        elif char == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1] |= closed
        elif char in "*+" or (char == "{" and _is_unbounded(pattern, at)):
            if closed:
                return True
            groups[-1] = True
        elif char != "?":
            closed = False
        at += 1
    return False


def _class_end(pattern: str, at: int) -> int:
    """Index of the ']' that closes the class opened at `at`, classes within it included."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return at


def _is_unbounded(pattern: str, at: int) -> bool:
    """Whether `{` at `at` opens {n,}."""
    body = pattern[at + 1 : at + 16].partition("}")
    return body[1] == "}" and body[0].endswith(",") and body[0][:-1].isdigit()


def _read_model(model: Mapping[str, JSON], facts: Facts) -> Generator[Finding, None, dict[str, int]]:
    """Findings on the model; returns its vocabulary as token -> id."""
    kind, vocab = model.get("type"), model.get("vocab")
    if kind is None:  # files before tokenizers 0.9 leave the type to be told from the fields
        kind = "BPE" if "merges" in model else "Unigram" if isinstance(vocab, list) else "WordPiece"
    if not isinstance(kind, str):
        kind = f"a {type(kind).__name__}"
    facts["model"] = kind[:MAX_FACT_CHARS]
    ids: dict[str, int] = {}
    if kind == "Unigram":
        yield from _read_unigram(model, vocab, ids)
    elif kind in {"BPE", "WordPiece", "WordLevel"}:
        yield from _read_vocabulary(vocab, ids)
        if kind == "BPE":
            yield from _read_merges(model, ids, facts)
    else:
        yield Finding("tokenizer/structure", f"model of type {clip(str(kind))}", member="model")
    facts["tokens"] = len(ids)
    return ids


def _read_vocabulary(vocab: JSON, ids: dict[str, int]) -> Iterator[Finding]:
    if not isinstance(vocab, dict) or len(vocab) > MAX_TOKENS:
        yield Finding(
            "tokenizer/vocabulary", f"vocab is no object of at most {MAX_TOKENS} tokens", member="vocab"
        )
        return
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < MAX_TOKEN_ID:
            message = f"token {clip(token)} has id {clip(str(number))}; expected 0 to {MAX_TOKEN_ID - 1}"
            yield Finding("tokenizer/vocabulary", message, member="vocab")
        else:
            ids[token] = number
    if len(set(ids.values())) != len(ids):
        seen: dict[int, str] = {}
        for token, number in ids.items():
            if number in seen:
                message = f"id {number} belongs to {clip(seen[number])} and {clip(token)}"
                yield Finding("tokenizer/duplicate-id", message, member="vocab")
            seen[number] = token


def _read_unigram(model: Mapping[str, JSON], vocab: JSON, ids: dict[str, int]) -> Iterator[Finding]:
    if not isinstance(vocab, list) or len(vocab) > MAX_TOKENS:
        yield Finding(
            "tokenizer/vocabulary", f"vocab is no list of at most {MAX_TOKENS} pieces", member="vocab"
        )
        return
    for number, piece in enumerate(vocab):
        if not isinstance(piece, list) or len(piece) != 2 or not isinstance(piece[0], str):
            yield Finding("tokenizer/vocabulary", f"piece {number} is not [token, score]", member="vocab")
        elif type(piece[1]) not in {float, int}:
            yield Finding(
                "tokenizer/vocabulary", f"piece {number} has no number as its score", member="vocab"
            )
        elif piece[0] in ids:
            message = f"token {clip(piece[0])} has ids {ids[piece[0]]} and {number}"
            yield Finding("tokenizer/duplicate-id", message, member="vocab")
        else:
            ids[piece[0]] = number
    unknown = model.get("unk_id")
    if unknown is not None and (type(unknown) is not int or not 0 <= unknown < len(vocab)):
        yield Finding(
            "tokenizer/vocabulary", f"unk_id {clip(str(unknown))} of {len(vocab)} pieces", member="unk_id"
        )


def _read_merges(model: Mapping[str, JSON], ids: Mapping[str, int], facts: Facts) -> Iterator[Finding]:
    merges = model.get("merges")
    if not isinstance(merges, list) or len(merges) > MAX_TOKENS:
        yield Finding("tokenizer/merges", f"merges is no list of at most {MAX_TOKENS} pairs", member="merges")
        return
    facts["merges"] = len(merges)
    prefix = model.get("continuing_subword_prefix") or ""
    cut = len(prefix) if isinstance(prefix, str) else 0
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2:
            yield Finding("tokenizer/merges", f"merge {number} is not a pair", member="merges")
            continue
        left, right = pair
        if not isinstance(left, str) or not isinstance(right, str):
            yield Finding("tokenizer/merges", f"merge {number} is not a pair of tokens", member="merges")
        elif left not in ids or right not in ids or left + right[cut:] not in ids:
            message = f"merge {number} of {clip(left)} and {clip(right)} leaves the vocabulary"
            yield Finding("tokenizer/merges", message, member="merges")


def _examine_added(added: JSON, ids: dict[str, int], facts: Facts) -> Iterator[Finding]:
    """Added tokens may repeat a token of the model under its own id; they extend `ids`."""
    tokens = {number: token for token, number in ids.items()}
    if added is None:
        return
    if not isinstance(added, list) or len(added) > MAX_TOKENS:
        yield Finding("tokenizer/structure", "added_tokens is not a list", member="added_tokens")
        return
    for token in added:
        content = token.get("content") if isinstance(token, dict) else None
        number = token.get("id") if isinstance(token, dict) else None
        if not isinstance(content, str) or type(number) is not int or not 0 <= number < MAX_TOKEN_ID:
            message = f"added token {clip(str(content))} of id {clip(str(number))}"
            yield Finding("tokenizer/vocabulary", message, member="added_tokens")
        elif tokens.get(number, content) != content or ids.get(content, number) != number:
            message = f"added token {clip(content)} takes id {number}, which is not its own"
            yield Finding("tokenizer/duplicate-id", message, member="added_tokens")
        else:
            tokens[number] = content
            ids[content] = number
    facts["added_tokens"] = len(added)


def _lines(source: ByteSource) -> list[str]:
    if source.size > MAX_TEXT_BYTES:
        raise Malformed(f"{source.size} bytes; at most {MAX_TEXT_BYTES} are read", rule="tokenizer/text")
    data = source.read(0, source.size)
    if (at := data.find(b"\0")) >= 0:
        raise Malformed("a zero byte in a token list", rule="tokenizer/text", offset=at)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Malformed("the token list is not UTF-8", rule="tokenizer/text", offset=error.start) from error
    # Only \n ends a line: tokens hold other characters that splitlines would break at.
    lines = text.removesuffix("\n").split("\n")
    if len(lines) > MAX_TOKENS:
        raise Malformed(f"{len(lines)} lines; at most {MAX_TOKENS}", rule="tokenizer/text")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_BYTES:
            raise Malformed(f"line {number} is {len(line)} characters long", rule="tokenizer/text")
    return lines


def _read_text(base: str, source: ByteSource, facts: Facts) -> Iterator[Finding]:
    lines = _lines(source)
    facts["lines"] = len(lines)
    if base == "merges.txt":
        pairs = lines[1:] if lines[0].startswith("#version") else lines
        for number, line in enumerate(pairs, 1):
            if line and (line.count(" ") != 1 or line.startswith(" ") or line.rstrip("\r").endswith(" ")):
                yield Finding("tokenizer/text", f"merge {number} is not a pair: {clip(line)}")


class TokenizerFormat:
    """The plug of `steelyard.formats`."""

    name = "tokenizer"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        base = base_name(path)
        if base in _TEXT_NAMES:
            return bool(head) and b"\0" not in head and head[:1] < b"\x80"
        return base == TOKENIZER_NAME and looks_like_json(head, path)

    def read(self, source: ByteSource, path: str) -> Report:
        base = base_name(path)
        facts: Facts = {"kind": base}
        if base in _TEXT_NAMES:
            findings = list(islice(_read_text(base, source, facts), MAX_FINDINGS))
        else:
            value = load(source)
            findings = [*examine(value), *_read_tokenizer(value, facts)][:MAX_FINDINGS]
        return Report(self.name, facts, tuple(findings))


FORMAT = TokenizerFormat()
