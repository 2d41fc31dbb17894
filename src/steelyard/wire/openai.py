"""OpenAI's wire, in one place: its requests, its errors, its list of models."""

from steelyard.wire.openai_chat import parse_chat
from steelyard.wire.openai_completions import parse_completion
from steelyard.wire.openai_embeddings import parse_embedding
from steelyard.wire.openai_errors import error
from steelyard.wire.openai_models import model, models
from steelyard.wire.openai_responses import parse_response

__all__ = ["error", "model", "models", "parse_chat", "parse_completion", "parse_embedding", "parse_response"]
