"""Renders a chat template as transformers does, on conversations of ours, in Jinja's immutable sandbox.

Only templates that `template_syntax` passed come here: nothing reaches Python, and cost is bounded. Source: the
environment of transformers' `apply_chat_template` (trim_blocks, lstrip_blocks, loop controls, the generation tag,
`tojson` without HTML escapes, raise_exception, strftime_now).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.template_syntax import Generation

MAX_OUTPUT_CHARS = 4 << 20
MAX_WORK = 2_000_000  # tags times messages, and characters written, over all renderings of one template
_SPECIAL = ("bos", "eos", "unk", "pad", "sep", "cls")


@dataclass(slots=True)
class Rendering:
    """What came out, and the texts that the clock gave on the way."""

    text: str
    dates: list[str] = field(default_factory=list)


class _Raised(TemplateError):
    """The template called raise_exception: it declines the conversation."""


class Renderer:
    """One compiled template."""

    def __init__(self, tree: nodes.Template) -> None:
        # The text goes to a model, not to a browser: transformers does not escape it either.
        self._sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        self._sandbox.filters["tojson"] = _tojson
        self._sandbox.globals["raise_exception"] = _raise
        self._sandbox.globals["strftime_now"] = self._strftime
        self._tags = sum(1 for _ in tree.find_all((nodes.Stmt, nodes.Call, nodes.Compare)))
        self._work = 0
        self._template = self._sandbox.from_string(tree)
        self._now = datetime(2000, 1, 1)  # noqa: DTZ001  set by every render
        self._dates: list[str] = []

    def render(
        self,
        messages: Sequence[Mapping[str, JSON]],
        *,
        now: datetime,
        tools: list[JSON] | None = None,
        add_generation_prompt: bool = False,
    ) -> Rendering | None:
        """The prompt; None when the template declines the conversation or cannot render it.

        Raises Malformed when all renderings together cost more than MAX_WORK.
        """
        self._spend(self._tags * len(messages))
        self._now, self._dates = now, []
        special = {f"{kind}_token": f"<|{kind}|>" for kind in _SPECIAL}
        try:
            text = self._template.render(
                messages=[dict(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **special,
            )
        except (
            TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
        ):  # fmt: skip
            return None
        self._spend(len(text) // 4)
        return Rendering(text[:MAX_OUTPUT_CHARS], self._dates)

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise Malformed("too large to be tried on every conversation", rule="template/unprobed")

    def _strftime(self, form: str) -> str:
        text = self._now.strftime(form)
        self._dates.append(text)
        return text


def _raise(message: str = "") -> NoReturn:
    raise _Raised(message)


def _tojson(
    value: JSON,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
