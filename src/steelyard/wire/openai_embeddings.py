"""OpenAI's embeddings wire: POST /v1/embeddings.

Engines give floats. base64 is made here: little-endian float32, as OpenAI's own clients ask for and decode.
Source: openai/openai-openapi, schemas CreateEmbeddingRequest, CreateEmbeddingResponse.
"""

import base64
import struct

from steelyard.wire.body import dump, parse_object
from steelyard.wire.call import Asked, Call, Object, Problem, Reply
from steelyard.wire.openai_completions import check_texts
from steelyard.wire.openai_fields import RULE, integer, model_of, text, wrong

MAX_INPUTS = 2_048
MAX_DIMENSIONS = 1 << 16


def parse_embedding(data: bytes) -> Asked:
    """The body of POST /v1/embeddings. Raises Malformed with rule `openai/PLACE`."""
    body = parse_object(data, RULE)
    model = model_of(body)
    check_texts(body.get("input"), "input", MAX_INPUTS)
    if body["input"] == "" or (isinstance(body["input"], list) and "" in body["input"]):
        raise wrong("input", "input has an empty text")
    integer(body, "dimensions", 1, MAX_DIMENSIONS)
    text(body, "user")
    wanted = body.get("encoding_format")
    if wanted not in (None, "float", "base64"):
        raise wrong("encoding_format", "encoding_format is not one of float, base64")
    # Every engine answers in floats; what the caller wants is made of them here.
    asked = {**body, "encoding_format": "float"}
    return Asked(
        Call("embedding", model, asked), lambda reply: EmbeddingEmitter(reply, base64=wanted == "base64")
    )


class EmbeddingEmitter:
    """Writes one list of embeddings."""

    def __init__(self, reply: Reply, *, base64: bool = False) -> None:
        self._reply = reply
        self._base64 = base64

    def whole(self, answer: Object) -> bytes:
        data = [
            {**item, "embedding": packed(item["embedding"])} if self._base64 else item
            for item in answer["data"]
        ]
        usage = {name: answer["usage"].get(name, 0) for name in ("prompt_tokens", "total_tokens")}
        return dump({"object": "list", "data": data, "model": self._reply.model, "usage": usage})

    def start(self) -> bytes:
        raise NotImplementedError("embeddings are not streamed")

    def chunks(self, chunks: list[Object]) -> bytes:
        raise NotImplementedError("embeddings are not streamed")

    def end(self) -> bytes:
        raise NotImplementedError("embeddings are not streamed")

    def broken(self, problem: Problem) -> bytes:
        raise NotImplementedError("embeddings are not streamed")


def packed(vector: list[float]) -> str:
    """Little-endian float32 in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
