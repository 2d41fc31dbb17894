"""Restoring is the same however an answer was cut."""

import itertools
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.privacy.restore import Restorer

ORIGINALS = {"Anna Miller": 'Jo "J" Smith', "Anna Miller Jones": "Bo\nLi", "4222222222222220": "4111111111111111",
             "http://h1.example.com": "http://me.example"}  # fmt: skip
WORDS = st.sampled_from([*ORIGINALS, "Anna", "Miller", " ", "x", "42", "\\n", "é"])


def chunk(text: str, channel: str = "content") -> dict:
    delta = (
        {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        if channel == "tool"
        else {channel: text}
    )
    return {"id": "a", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def said(chunks: list[dict], channel: str) -> str:
    out = ""
    for item in chunks:
        for choice in item["choices"]:
            for call in choice["delta"].get("tool_calls", []):
                out += call["function"]["arguments"]
            out += choice["delta"].get(channel, "")
    return out


@settings(max_examples=200, deadline=None)
@given(
    st.lists(WORDS, max_size=8),
    st.lists(st.integers(0, 120), max_size=6),
    st.sampled_from(["content", "tool"]),
)
def test_any_cut_restores_the_same(words: list[str], cuts: list[int], channel: str) -> None:
    text = "".join(words)
    restorer = Restorer(ORIGINALS)
    marks = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    out = [
        c
        for low, high in itertools.pairwise(marks)
        for c in restorer.chunks([chunk(text[low:high], channel)])
    ]
    out += restorer.flush()
    message = {"tool_calls": [{"function": {"arguments": text}}]} if channel == "tool" else {"content": text}
    whole = Restorer(ORIGINALS).whole({"choices": [{"message": message}]})["choices"][0]["message"]
    want = whole["tool_calls"][0]["function"]["arguments"] if channel == "tool" else whole["content"]
    assert said(out, channel) == want


def test_pseudonym_in_tool_arguments_is_restored_as_json() -> None:
    answer = {
        "choices": [
            {
                "message": {
                    "tool_calls": [
                        {"function": {"arguments": '{"n":"Anna Miller","u":"http:\\/\\/h1.example.com"}'}}
                    ]
                }
            }
        ]
    }
    call = Restorer(ORIGINALS).whole(answer)["choices"][0]["message"]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"n": 'Jo "J" Smith', "u": "http://me.example"}


def test_held_text_goes_before_the_finish_reason() -> None:
    end = {"id": "a", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    out = Restorer(ORIGINALS).chunks([chunk("Hi Anna Mil"), end])
    assert said(out, "content") == "Hi Anna Mil"
    assert out[-1] is end


def test_longer_word_is_not_a_pseudonym() -> None:
    answer = {"choices": [{"message": {"content": "Anna Millers 14222222222222220"}}]}
    assert (
        Restorer(ORIGINALS).whole(answer)["choices"][0]["message"]["content"]
        == "Anna Millers 14222222222222220"
    )
