"""OpenAI's error body: {"error": {message, type, param, code}}. Source: openai/openai-openapi, schema Error."""

from steelyard.wire.body import dump
from steelyard.wire.call import Problem

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "requests"}


def error(problem: Problem) -> bytes:
    """The body. Fields of ours stand beside the four that clients know."""
    kind = _TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    if problem.code == "insufficient_quota":
        kind = problem.code
    fields = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
    return dump({"error": {**fields, **problem.extra}})
