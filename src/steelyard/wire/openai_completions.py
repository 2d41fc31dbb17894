"""OpenAI's legacy text wire: POST /v1/completions.

Source: openai/openai-openapi, schemas CreateCompletionRequest, CreateCompletionResponse (also the shape of events).
"""

from steelyard.wire.body import dump, parse_object
from steelyard.wire.call import Asked, Call, Object, Problem, Reply
from steelyard.wire.openai_chat import check_sampling
from steelyard.wire.openai_errors import error
from steelyard.wire.openai_fields import RULE, flag, integer, model_of, streaming, text, wrong

MAX_PROMPTS = 128
MAX_PROMPT_TOKENS = 1 << 20

_DONE = b"data: [DONE]\n\n"


def parse_completion(data: bytes) -> Asked:
    """The body of POST /v1/completions. Raises Malformed with rule `openai/PLACE`."""
    body = parse_object(data, RULE)
    model = model_of(body)
    check_texts(body.get("prompt"), "prompt", MAX_PROMPTS)
    check_sampling({name: value for name, value in body.items() if name != "logprobs"})
    integer(body, "logprobs", 0, 5)
    best_of = integer(body, "best_of", 1, 20)
    flag(body, "echo")
    text(body, "suffix")
    stream, include_usage = streaming(body)
    if best_of is not None and (stream or best_of < (body.get("n") or 1)):
        raise wrong("best_of", "best_of is at least n, and cannot be streamed")
    return Asked(
        Call("completion", model, body, stream),
        lambda reply: CompletionEmitter(reply, include_usage=include_usage),
    )


def check_texts(value: object, place: str, most: int) -> None:
    """Text, texts, tokens or lists of tokens: what may be completed or embedded. Raises Malformed."""
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise wrong(place, f"{place} is required: text, a list of texts, tokens or lists of tokens")
    if all(type(item) is int for item in value):
        if len(value) > MAX_PROMPT_TOKENS:
            raise wrong(place, f"{place} has more than {MAX_PROMPT_TOKENS} tokens")
        if min(value) < 0:
            raise wrong(place, f"{place} has a token below 0")
        return
    if len(value) > most:
        raise wrong(place, f"{place} has more than {most} entries")
    if not all(isinstance(item, str) for item in value) and not all(map(_is_tokens, value)):
        raise wrong(place, f"{place} is neither texts nor lists of tokens")


def _is_tokens(value: object) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_PROMPT_TOKENS
        and all(type(item) is int and item >= 0 for item in value)
    )


class CompletionEmitter:
    """Writes one text completion; its events have the shape of the whole."""

    def __init__(self, reply: Reply, *, include_usage: bool = False) -> None:
        self._fixed = {
            "id": "cmpl-" + reply.id,
            "object": "text_completion",
            "created": reply.created,
            "model": reply.model,
            "system_fingerprint": reply.fingerprint,
        }
        self._include_usage = include_usage
        self._usage: Object | None = None
        self._head = b""
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def whole(self, answer: Object) -> bytes:
        for choice in answer["choices"]:
            choice.setdefault("logprobs", None)
        return dump({**answer, **self._fixed})

    def start(self) -> bytes:
        self._head = b"data: " + dump(self._fixed)[:-1] + b',"choices":'
        return b""

    def chunks(self, chunks: list[Object]) -> bytes:
        events: list[bytes] = []
        for chunk in chunks:
            self._usage = chunk.get("usage") or self._usage
            choices = chunk["choices"]
            if choices:
                for choice in choices:
                    choice.setdefault("logprobs", None)
                    choice.setdefault("finish_reason", None)
                events += (self._head, dump(choices), self._tail)
        return b"".join(events)

    def end(self) -> bytes:
        if not self._include_usage:
            return _DONE
        return b'%b[],"usage":%b}\n\n%b' % (self._head, dump(self._usage), _DONE)

    def broken(self, problem: Problem) -> bytes:
        return b"data: %b\n\n" % error(problem)
