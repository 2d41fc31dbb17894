"""OpenAI's requests as llama.cpp takes them. Only fields named here reach it: it has others that callers must not set.

Log-probabilities are llama.cpp's: a character that takes several tokens has one entry, that of its last token.

What llama.cpp would silently not do is refused (WrongUsage): images, echo, a tool choice by name it does not know,
a schema it does not enforce, a bias on a token it has not. What changes nothing in the answer (`user`, `store`,
`metadata`, `prediction`) is left out.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from steelyard.engines.embedded_prompt import Traits, described, messages_of, tools_of
from steelyard.engines.embedded_schema import require_enforceable
from steelyard.errors import WrongUsage
from steelyard.wire.call import Call, Object

SEEDS = 2**32 - 1  # llama.cpp's seeds are 32 bits wide, and the last of them means "draw one"
MAX_INTEGER = 2**31 - 1
# llama.cpp's chat streams leave out the log-probabilities of tokens whose text it holds back (the begin of a stop
# text or of a tag), so a chat answer with them is generated in one piece. It cannot be aborted before its end.
_UNBROKEN: Object = {"stream": False, "return_progress": False}
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
REASONING_FORMATS = ("none", "auto", "deepseek")

# Fields of llama.cpp's own, with their largest values.
_OWN_NUMBERS = {"top_k": MAX_INTEGER, "min_p": 1, "repeat_penalty": 10}
_UNDOABLE = ("audio", "function_call", "functions", "suffix", "web_search_options")


def task_of(call: Call, traits: Traits) -> Object:
    """What the child is asked to do; embedded_child.py has the fields. Raises WrongUsage."""
    if (call.kind == "embedding") != traits.embeds:
        able = "gives embeddings only" if traits.embeds else "gives no embeddings: it was not made for them"
        raise WrongUsage(f"this model {able}")
    if call.kind == "embedding":
        return _embedding(call.body, traits)
    return _chat(call.body, traits) if call.kind == "chat" else _completion(call.body, traits)


def count_of(call: Call, traits: Traits) -> Object:
    """The same, to learn how long its prompts are. Raises WrongUsage."""
    task = task_of(call, traits)
    if task["kind"] == "embedding":
        raise WrongUsage("the tokens of embeddings are told with the embeddings")
    rounds = [turn for turn in task["rounds"] if not turn["again"]]
    for turn in rounds:
        turn["body"] |= {
            "n": 1,
            "stream": True,
            "return_progress": True,
            "logprobs": False,
            "top_logprobs": None,
        }
    return {**task, "kind": "count", "rounds": rounds}


# Each kind of call.


def _chat(body: Object, traits: Traits) -> Object:
    base = _sampling(body, traits)
    base["messages"] = messages_of(body.get("messages"), traits)
    base |= tools_of(body, traits)
    base |= _format(body.get("response_format"), traits)
    if "response_format" in base and base.get("tool_choice", "none") != "none":
        raise WrongUsage("this engine enforces a schema or offers tools, not both in one request")
    base |= _reasoning(body)
    top = None
    if body.get("logprobs"):
        top = body.get("top_logprobs") or 0
        base |= {"logprobs": True, "top_logprobs": max(1, top), **_UNBROKEN}
    return _task("chat", [base], body, traits, top)


def _completion(body: Object, traits: Traits) -> Object:
    if body.get("echo"):
        raise WrongUsage("echo is not supported: llama.cpp leaves the prompt's own tokens out without a word")
    n = body.get("n") or 1
    if (body.get("best_of") or n) != n:
        raise WrongUsage("best_of is not supported by this engine; send n alone")
    base = _sampling(body, traits)
    top = body.get("logprobs")
    if top is not None:
        base["n_probs"] = max(1, top)
    return _task(
        "completion",
        [{**base, "prompt": prompt} for prompt in _prompts(body.get("prompt"), traits)],
        body,
        traits,
        top,
    )


def _embedding(body: Object, traits: Traits) -> Object:
    if body.get("dimensions") is not None:
        raise WrongUsage("dimensions is not supported: this engine gives vectors as wide as the model's")
    asked = {
        "input": _prompts(body.get("input"), traits),
        "encoding_format": body.get("encoding_format") or "float",
    }
    return {"kind": "embedding", "rounds": [{"first": 0, "body": asked, "again": False}]}


def _task(kind: str, bodies: Iterable[Object], body: Object, traits: Traits, top: int | None) -> Object:
    """As many rounds as it takes: llama.cpp gives at most as many answers at once as it has slots.

    One at a time if unbroken: of several it would tell the usage of the first only.
    """
    count, seed = body.get("n") or 1, body.get("seed")
    most = 1 if top is not None and kind == "chat" else traits.slots
    rounds: list[Object] = []
    first = 0
    for base in bodies:
        for done in range(0, count, most):
            asked = {**base, "n": min(most, count - done)}
            if seed is not None:
                asked["seed"] = (seed + done) % SEEDS
            rounds.append({"first": first + done, "body": asked, "again": done > 0})
        first += count
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    return {"kind": kind, "rounds": rounds, "top": top, "stops": stops}


# The parts of a request.


def _sampling(body: Object, traits: Traits) -> Object:
    for name in _UNDOABLE:
        if body.get(name):
            raise WrongUsage(f"{name} is not supported by this engine")
    if body.get("modalities") not in (None, ["text"]):
        raise WrongUsage("this engine answers in text only")
    asked: Object = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # an event per prompt batch: a long prompt can be aborted
    }
    if body.get("stop"):
        # Only the verbose answer names the stop that was met.
        asked |= {"stop": body["stop"], "verbose": True}
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if most is not None:
        asked["max_tokens"] = min(most, MAX_INTEGER)
    if body.get("seed") is not None:
        asked["cache_prompt"] = False  # a reused prefix changes the last bits of the logits
    return asked | _distribution(body) | _penalties(body, traits)


def _distribution(body: Object) -> Object:
    """What the caller left open is left to the model's own defaults; as soon as the caller sets temperature or
    top_p, nothing else cuts the distribution."""
    asked: Object = {}
    temperature, top_p = body.get("temperature"), body.get("top_p")
    if temperature is not None or top_p is not None:
        asked |= {"top_k": 0, "min_p": 0.0, "top_p": 1.0 if top_p is None else top_p}
    if temperature is not None:
        asked["temperature"] = temperature
    for name, most in _OWN_NUMBERS.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise WrongUsage(f"{name} is not a number from 0 to {most}")
        asked[name] = int(value) if name == "top_k" else value
    return asked


def _penalties(body: Object, traits: Traits) -> Object:
    asked: Object = {}
    for name in ("frequency_penalty", "presence_penalty"):
        if body.get(name):
            asked |= {
                name: body[name],
                "repeat_last_n": traits.context,
            }  # llama.cpp's own window is 64 tokens
    if body.get("logit_bias"):
        asked["logit_bias"] = _biases(body["logit_bias"], traits)
    return asked


def _biases(given: Mapping[str, Any], traits: Traits) -> Object:
    for token in given:
        if not (token.isascii() and token.isdigit() and int(token) < traits.tokens):
            raise WrongUsage(f"logit_bias names a token that is not one of this model's {traits.tokens}")
    return dict(given)


def _prompts(given: object, traits: Traits) -> list[Any]:
    """Texts, or lists of tokens. A list of tokens is the caller's own tokenising, control tokens included."""
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise WrongUsage("the request has no prompt")
    prompts: list[Any] = []
    for prompt in given:
        if isinstance(prompt, str):
            prompts.append(traits.text(prompt))
            continue
        if not isinstance(prompt, list) or not all(_is_token(token, traits) for token in prompt):
            raise WrongUsage(f"a prompt is neither text nor a list of tokens below {traits.tokens}")
        prompts.append(prompt)
    return prompts


def _is_token(token: object, traits: Traits) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < traits.tokens


def _format(given: Any, traits: Traits) -> Object:  # noqa: ANN401 (JSON)
    kind = given["type"] if given else "text"
    if kind == "text":
        return {}
    schema = given["json_schema"].get("schema") if kind == "json_schema" else {"type": "object"}
    schema = described({"type": "object"} if schema is None else schema, "the schema", traits)
    require_enforceable(schema)
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


def _reasoning(body: Object) -> Object:
    asked: Object = {}
    effort, form = body.get("reasoning_effort"), body.get("reasoning_format")
    if effort is not None:
        if effort not in EFFORTS:
            raise WrongUsage(f"reasoning_effort is not one of {', '.join(EFFORTS)}")
        asked["reasoning_effort"] = effort
    if form is not None:
        if form not in REASONING_FORMATS:
            raise WrongUsage(f"reasoning_format is not one of {', '.join(REASONING_FORMATS)}")
        asked["reasoning_format"] = form
    switches = body.get("chat_template_kwargs")
    if switches is not None:
        if not isinstance(switches, dict) or not all(isinstance(value, bool) for value in switches.values()):
            raise WrongUsage("chat_template_kwargs: this engine takes switches that are true or false only")
        asked["chat_template_kwargs"] = {
            key: value for key, value in switches.items() if key != "add_generation_prompt"
        }
    budget = body.get("thinking_budget_tokens")
    if budget is not None:
        if isinstance(budget, bool) or not isinstance(budget, int) or not 0 <= budget <= MAX_INTEGER:
            raise WrongUsage(f"thinking_budget_tokens is not a whole number from 0 to {MAX_INTEGER}")
        asked["thinking_budget_tokens"] = budget
    return asked
