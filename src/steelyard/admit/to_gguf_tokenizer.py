"""The tokenizer files of a model directory -> the tokenizer keys of a GGUF, or a refusal.

A byte-level BPE tokenizer.json is recognised by the structure of its normaliser, pre-tokenizer and post-processor,
never by its name; one that llama.cpp does not split in exactly the same way refuses.

Sources: ggml-org/llama.cpp src/llama-vocab.cpp (pre-tokenizer expressions and token types), gguf-py constants.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from steelyard.admit.to_gguf_tensors import load_json
from steelyard.errors import Malformed, Refused, WrongUsage
from steelyard.formats.sentencepiece import SentencePieceModel, pieces_of

MAX_TOKENIZER_BYTES = 64 << 20
MAX_TEMPLATE_BYTES = 1 << 20
SETTINGS = "tokenizer_config.json"
ADDED_SCORE = -1000.0  # what llama.cpp's own converter gives tokens that training did not see
MAX_END_IDS = 3  # tokenizer.ggml has three keys for them: eos, eot, eom

JsonObject = Mapping[str, Any]


class Kind(IntEnum):
    """Token types as llama.cpp numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, and what llama.cpp needs to split text into them. `scores` only for SentencePiece.

    `normaliser` is `NFC` when the model expects normalised text, which llama.cpp does not do by itself.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[Kind, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    normaliser: str = ""


@dataclass(frozen=True, slots=True)
class Specials:
    """Token ids with a meaning, and the chat templates by name ("" is the default one)."""

    bos: int | None
    ends: tuple[int, ...]
    unknown: int | None
    padding: int | None
    templates: Mapping[str, str] = field(default_factory=dict)


# What the tokenizers library splits by, and the llama.cpp name for the same expression.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_BY_EXPRESSION = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
_NEEDS_IGNORE_MERGES = frozenset({"llama-bpe"})  # llama.cpp looks whole words up for this one only


def vocabulary_of(folder: Path, size: int) -> Vocabulary:
    """From tokenizer.model where there is one (SentencePiece), else from tokenizer.json (byte-level BPE)."""
    pieces, body = folder / "tokenizer.model", folder / "tokenizer.json"
    if pieces.exists():
        with pieces.open("rb") as file:
            data = file.read(MAX_TOKENIZER_BYTES + 1)
        return sentencepiece_vocabulary(
            pieces_of(data), _added_beside(folder), _optional(folder / SETTINGS), size
        )
    if body.exists():
        return bpe_vocabulary(load_json(body, MAX_TOKENIZER_BYTES), size)
    raise WrongUsage(f"{folder} has neither tokenizer.json nor tokenizer.model")


def sentencepiece_vocabulary(
    model: SentencePieceModel, added: object, settings: JsonObject, size: int
) -> Vocabulary:
    """A SentencePiece BPE model, the `added_tokens` beside it, filled up to `size` tokens with unused ones."""
    odd = {
        "model type": model.model_type != "bpe",
        "normalisation": bool(model.charsmap),
        "remove_extra_whitespaces": model.remove_extra_whitespaces,
        "no escape_whitespaces": not model.escape_whitespaces,
        "no byte_fallback": not model.byte_fallback,
    }
    if any(odd.values()):
        names = ", ".join(name for name, is_odd in odd.items() if is_odd)
        raise Refused(f"tokenizer.model is not split by llama.cpp as it was trained: {names}")
    by_id = {i: (piece.text, Kind(piece.kind)) for i, piece in enumerate(model.pieces)}
    scores = [piece.score for piece in model.pieces]
    for text, token, kind in added_tokens(added):
        if by_id.get(token, (text, kind))[0] != text:
            raise Malformed(f"id {token} is {by_id[token][0]!r} and {text!r}", rule="tokenizer/vocab")
        by_id.setdefault(token, (text, kind))
    tokens, kinds = fill(by_id, size)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        kinds=kinds,
        scores=(*scores, *[ADDED_SCORE] * (size - len(scores))),
        add_bos=settings.get("add_bos_token") is not False,
        add_eos=settings.get("add_eos_token") is True,
        add_space_prefix=model.add_dummy_prefix,
    )


def _added_beside(folder: Path) -> list[JsonObject]:
    """Added tokens of a SentencePiece model: in tokenizer.json, else by id in tokenizer_config.json."""
    body = folder / "tokenizer.json"
    if body.exists():
        added = load_json(body, MAX_TOKENIZER_BYTES).get("added_tokens")
        return added if isinstance(added, list) else []
    decoder = _optional(folder / SETTINGS).get("added_tokens_decoder")
    pairs = decoder.items() if isinstance(decoder, dict) else ()
    return [{**entry, "id": int(key)} for key, entry in pairs if key.isdecimal() and isinstance(entry, dict)]


def bpe_vocabulary(body: JsonObject, size: int) -> Vocabulary:
    """tokenizer.json with a byte-level BPE model, filled up to `size` tokens with unused ones."""
    model = body.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise Refused("tokenizer.json is not a BPE model")
    for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout", "fuse_unk"):
        if model.get(key):
            raise Refused(
                f"tokenizer.json: model.{key} is {model[key]!r}; only plain byte-level BPE is understood"
            )
    pre = _pre_tokenizer(body.get("pre_tokenizer"))
    if bool(model.get("ignore_merges")) != (pre in _NEEDS_IGNORE_MERGES):
        raise Refused(
            f"tokenizer.json: ignore_merges is {model.get('ignore_merges')!r}, llama.cpp's {pre} differs"
        )
    tokens, kinds = _bpe_tokens(model, body.get("added_tokens") or [], size)
    before, after = _around(body.get("post_processor"))
    return Vocabulary(
        model="gpt2",
        pre=pre,
        tokens=tokens,
        kinds=kinds,
        merges=tuple(_merges(model.get("merges"))),
        add_bos=bool(before),
        add_eos=bool(after),
        normaliser=_normaliser(body.get("normalizer")),
    )


def _pre_tokenizer(value: object) -> str:
    steps = (
        value.get("pretokenizers") if isinstance(value, dict) and value.get("type") == "Sequence" else [value]
    )
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return "gpt-2"
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            return "smollm"
        case [
            {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ] if expression in _BY_EXPRESSION:
            return _BY_EXPRESSION[expression]
    raise Refused(
        "tokenizer.json splits text in a way the converter cannot match to a llama.cpp pre-tokenizer"
    )


def _normaliser(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dict) and value.get("type") == "NFC":
        return "NFC"
    kind = value.get("type") if isinstance(value, dict) else value
    raise Refused(f"tokenizer.json has the normaliser {kind!r}, which llama.cpp does not apply")


def _merges(value: object) -> Iterator[str]:
    for pair in value if isinstance(value, list) else []:
        text = " ".join(pair) if isinstance(pair, list) else pair
        if not isinstance(text, str) or text.count(" ") != 1:
            raise Malformed(f"tokenizer.json: {pair!r} is not a merge of two tokens", rule="tokenizer/merges")
        yield text


def _bpe_tokens(model: JsonObject, added: object, size: int) -> tuple[tuple[str, ...], tuple[Kind, ...]]:
    by_id: dict[int, tuple[str, Kind]] = {}
    vocab = model.get("vocab")
    for text, token in vocab.items() if isinstance(vocab, dict) else ():
        _place(by_id, token, text, Kind.NORMAL)
    for text, token, kind in added_tokens(added):
        if token in by_id and by_id[token][0] != text:
            raise Malformed(f"tokenizer.json gives id {token} to two tokens", rule="tokenizer/vocab")
        by_id[token] = (text, kind)
    return fill(by_id, size)


def _place(by_id: dict[int, tuple[str, Kind]], token: object, text: str, kind: Kind) -> None:
    if isinstance(token, bool) or not isinstance(token, int) or token in by_id:
        raise Malformed(f"tokenizer.json gives {text!r} the id {token!r}", rule="tokenizer/vocab")
    by_id[token] = (text, kind)


def added_tokens(value: object) -> Iterator[tuple[str, int, Kind]]:
    """(text, id, kind) of each entry of an `added_tokens` list. Refuses flags that llama.cpp does not know."""
    for entry in value if isinstance(value, list) else []:
        match entry:
            case {"content": str(text), "id": int(token), "special": bool(special)}:
                flags = [flag for flag in ("lstrip", "rstrip", "single_word") if entry.get(flag)]
                if flags:
                    raise Refused(
                        f"added token {text!r} has {', '.join(flags)}, which llama.cpp would not do"
                    )
                yield text, token, Kind.CONTROL if special else Kind.USER_DEFINED
            case _:
                raise Malformed("an added token lacks content, id or special", rule="tokenizer/added")


def fill(by_id: Mapping[int, tuple[str, Kind]], size: int) -> tuple[tuple[str, ...], tuple[Kind, ...]]:
    """Tokens and kinds for ids 0..size-1; ids without a token become unused ones."""
    if not by_id or min(by_id) < 0 or max(by_id) >= size:
        raise Refused(f"token ids reach {max(by_id, default=-1)}, config.json has room for {size}")
    texts = {text for text, _ in by_id.values()}
    if len(texts) != len(by_id):
        raise Malformed("two token ids have the same text", rule="tokenizer/vocab")
    rows = [by_id.get(i, (f"[PAD{i}]", Kind.UNUSED)) for i in range(size)]
    return tuple(text for text, _ in rows), tuple(kind for _, kind in rows)


def _around(value: object) -> tuple[list[str], list[str]]:
    """Special tokens the post-processor puts before and after a single text."""
    if value is None or (isinstance(value, dict) and value.get("type") == "ByteLevel"):
        return [], []
    if isinstance(value, dict) and value.get("type") == "Sequence":
        found = [_around(step) for step in value.get("processors") or []]
        used = [pair for pair in found if pair != ([], [])]
        if len(used) <= 1:
            return used[0] if used else ([], [])
    if isinstance(value, dict) and value.get("type") == "TemplateProcessing":
        names = [
            entry["SpecialToken"]["id"] if "SpecialToken" in entry else None
            for entry in value.get("single") or []
        ]
        if names.count(None) == 1 and len(names) <= 3:
            middle = names.index(None)
            before, after = [n for n in names[:middle] if n], [n for n in names[middle + 1 :] if n]
            if len(before) <= 1 and len(after) <= 1:
                return before, after
    raise Refused("tokenizer.json has a post-processor the converter does not know")


def specials_of(folder: Path, vocabulary: Vocabulary, config: JsonObject) -> Specials:
    """Special ids from tokenizer_config.json, generation_config.json and config.json, and the chat templates."""
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    settings = _optional(folder / SETTINGS)
    generation = _optional(folder / "generation_config.json")

    def named(key: str) -> list[int]:
        value = settings.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if text is None:
            return []
        if text not in ids:
            raise Refused(f"tokenizer_config.json: {key} {text!r} is not in the vocabulary")
        return [ids[text]]

    def numbered(key: str) -> list[int]:
        found = []
        for body in (generation, config):
            value = body.get(key)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and (not isinstance(token, int) or not 0 <= token < len(ids)):
                    raise Refused(f"{key} {token!r} is not a token id")
                found.extend([] if token is None else [token])
        return found

    ends = tuple(dict.fromkeys(named("eos_token") + numbered("eos_token_id")))
    if not ends or len(ends) > MAX_END_IDS:
        raise Refused(f"{len(ends)} end-of-text tokens are named, expected 1 to {MAX_END_IDS}")
    begin = named("bos_token") + numbered("bos_token_id")
    for key, does in (("add_bos_token", vocabulary.add_bos), ("add_eos_token", vocabulary.add_eos)):
        if settings.get(key) not in (None, does):
            raise Refused(
                f"tokenizer_config.json says {key} is {settings[key]!r}, the tokenizer itself does {does}"
            )
    if vocabulary.add_bos and not begin:
        raise Refused("the tokenizer puts a token before each text, but no file names the bos token")
    return Specials(
        bos=begin[0] if begin else None,
        ends=ends,
        unknown=next(iter(named("unk_token")), None),
        padding=next(iter(named("pad_token") + numbered("pad_token_id")), None),
        templates=_templates(folder, settings),
    )


def _optional(path: Path) -> dict[str, Any]:
    return load_json(path, MAX_TOKENIZER_BYTES) if path.exists() else {}


def _templates(folder: Path, settings: JsonObject) -> dict[str, str]:
    value = settings.get("chat_template")
    path = folder / "chat_template.jinja"
    if path.exists():
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise Malformed(f"{path.name} is larger than {MAX_TEMPLATE_BYTES} bytes", rule="template/size")
        try:
            return {"": path.read_text(encoding="utf-8")}
        except UnicodeDecodeError as error:
            raise Malformed(
                f"{path.name} is not UTF-8", rule="template/encoding", offset=error.start
            ) from error
    if value is None:
        return {}
    if isinstance(value, str):
        return {"": value}
    named = {entry.get("name"): entry.get("template") for entry in value} if isinstance(value, list) else {}
    if not named or not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise Malformed(
            "tokenizer_config.json: chat_template is neither text nor named texts", rule="template/type"
        )
    if "default" not in named:
        raise WrongUsage(f"no chat template is the default one; found {', '.join(sorted(named))}")
    return {("" if name == "default" else name): text for name, text in sorted(named.items())}
