"""How the servers that we launch are started: a command line for each, and where the model stands in it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.errors import WrongUsage


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started. argv holds {path}, {port}, {name} and {gguf}; asks_for: what it calls the model.

    {gguf} is the model's one GGUF file.
    """

    argv: tuple[str, ...]
    asks_for: str = "{name}"
    key_variable: str | None = None


COMMANDS = {
    "vllm": Command(
        ("vllm", "serve", "{path}", "--host", "127.0.0.1", "--port", "{port}", "--served-model-name", "{name}"),
        key_variable="VLLM_API_KEY",
    ),
    "sglang": Command(
        (
            "python3", "-m", "sglang.launch_server", "--model-path", "{path}", "--host", "127.0.0.1",
            "--port", "{port}", "--served-model-name", "{name}",
        )
    ),
    "llama-server": Command(
        ("llama-server", "-m", "{gguf}", "--host", "127.0.0.1", "--port", "{port}", "--alias", "{name}", "--jinja"),
        key_variable="LLAMA_API_KEY",
    ),
    "transformers": Command(
        ("transformers", "serve", "{path}", "--host", "127.0.0.1", "--port", "{port}"), asks_for="{path}"
    ),
}  # fmt: skip


def command_of(text: str) -> Command:
    """A command by its name in COMMANDS, or a line of one's own with {path} or {gguf}, and {port}.

    Raises WrongUsage.
    """
    known = COMMANDS.get(text)
    if known is not None:
        return known
    try:
        argv = tuple(shlex.split(text))
    except ValueError as error:
        raise WrongUsage(f"--launch {text!r} is no command: {error}") from error
    if "{port}" not in text or not ("{path}" in text or "{gguf}" in text):
        raise WrongUsage(
            f"--launch {text!r} is neither one of {', '.join(COMMANDS)} nor a command with {{path}} and {{port}}"
        )
    return Command(argv)


def filled(word: str, values: Mapping[str, str]) -> str:
    """Not str.format: a command of one's own may hold other braces."""
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def gguf_of(path: Path) -> Path:
    found: Sequence[Path] = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    if len(found) != 1:
        raise WrongUsage(f"{path} has {len(found)} GGUF files and the server loads exactly one")
    return found[0]
