"""Reduce OpenAI's published OpenAPI document to the answers we write: python make.py openapi.json

Source: github.com/openai/openai-openapi at commit f85dbe223d40e1a31cba812ab2d755c7e98a92a3 (MIT, see LICENSE).
What is dropped: prose, examples, and keys that begin with x-. What is rewritten: places of
schemas, to $defs, and `nullable`, to a choice with null.
"""

import json
import sys
from pathlib import Path

ROOTS = (
    "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse", "CreateCompletionResponse",
    "CreateEmbeddingResponse", "Response", "ResponseStreamEvent", "ErrorResponse", "ListModelsResponse", "Model",
)  # fmt: skip
PROSE = {
    "description",
    "example",
    "examples",
    "title",
    "default",
    "deprecated",
    "discriminator",
    "externalDocs",
}
PLACE = "#/components/schemas/"


def bare(value, *, named=False):
    """named: the keys are names of properties, none of which is prose."""
    if isinstance(value, list):
        return [bare(item) for item in value]
    if not isinstance(value, dict):
        return value.replace(PLACE, "#/$defs/") if isinstance(value, str) else value
    kept = {
        key: bare(item, named=key == "properties" and not named)
        for key, item in value.items()
        if named or not (key in PROSE or key.startswith("x-"))
    }
    if kept.pop("nullable", False) is True and not named:  # OpenAPI 3.0's word in a document of 3.1
        return {"anyOf": [kept, {"type": "null"}]}
    return kept


def names_in(value):
    if isinstance(value, list):
        return {name for item in value for name in names_in(item)}
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"].removeprefix("#/$defs/")} if isinstance(value.get("$ref"), str) else set()
    return own.union(*(names_in(item) for item in value.values()))


def main():
    schemas = json.loads(Path(sys.argv[1]).read_text())["components"]["schemas"]
    kept, wanted = {}, set(ROOTS)
    while wanted:
        name = wanted.pop()
        kept[name] = bare(schemas[name])
        wanted |= names_in(kept[name]) - kept.keys()
    target = Path(__file__).with_name("answers.json")
    target.write_text(json.dumps({"$defs": kept}, sort_keys=True, indent=1) + "\n")


main()
