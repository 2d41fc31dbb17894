"""Ways to carry personal data past the shield, or to get somebody else's back."""

import json
import logging
import time

import pytest

from steelyard.errors import Refused
from steelyard.privacy.detect import Detector
from steelyard.privacy.restore import Restorer
from steelyard.privacy.shield import Shield
from steelyard.wire.call import Call

KEY = b"k" * 32
DETECTOR = Detector()
SHIELD = Shield(KEY)
CARD = "4111111111111111"


def chat(text: str) -> Call:
    return Call("chat", "m", {"messages": [{"role": "user", "content": text}]})


def kinds(text: str) -> set[str]:
    return {hit.kind for hit in DETECTOR.find(text)}


@pytest.mark.parametrize(
    "text",
    ["4111-1111-1111-1111", "4111 1111 1111 1111", "\uff14111111111111111", "41\u200b11111111111111", "4111\u00ad1111\u00ad1111\u00ad1111",
     "4111\u20111111\u20111111\u20111111", "4111\u00a01111\u00a01111\u00a01111", "\u0664\u0661\u0661\u0661111111111111", "\u09ea111111111111111"],
)  # fmt: skip
def test_disguised_card_number_is_found(text: str) -> None:
    assert kinds(f"pay {text} now") == {"card"}


def test_zero_width_characters_in_an_email_hide_nothing() -> None:
    assert "email" in kinds("jane\u200b@cor\u2060p.example.org")


def test_unicode_escape_in_tool_arguments_hides_nothing() -> None:
    arguments = '{"to": "jane\\u0040corp.example.org"}'
    body = {
        "messages": [
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        ]
    }
    guarded = SHIELD.protect(Call("chat", "m", body), b"c")
    call = guarded.call.body["messages"][0]["tool_calls"][0]["function"]
    assert "corp" not in json.loads(call["arguments"])["to"]


def test_unicode_escape_in_a_tools_result_hides_nothing() -> None:
    body = {
        "messages": [
            {"role": "tool", "tool_call_id": "a", "content": '{"to": ["jane\\u0040corp.example.org"]}'}
        ]
    }
    content = SHIELD.protect(Call("chat", "m", body), b"c").call.body["messages"][0]["content"]
    assert "corp" not in json.loads(content)["to"][0]


def test_structural_field_cannot_carry_an_address() -> None:
    guarded = SHIELD.protect(
        Call("chat", "m", {"messages": [{"role": "jane@corp.example.org", "content": "x"}]}), b"c"
    )
    assert "corp" not in guarded.call.body["messages"][0]["role"]


def test_value_in_the_name_of_an_argument_is_hidden() -> None:
    arguments = json.dumps({"jane@corp.example.org": 1})
    body = {
        "messages": [
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        ]
    }
    assert "jane" not in json.dumps(SHIELD.protect(Call("chat", "m", body), b"c").call.body)


def test_caller_who_writes_a_pseudonym_himself_gets_nobodys_value() -> None:
    first = SHIELD.protect(chat(f"card {CARD}"), b"c").call.body["messages"][0]["content"]
    stolen = first.removeprefix("card ")
    other = SHIELD.protect(chat(f"card {stolen}"), b"other")
    assert other.restorer is not None
    answer = {"choices": [{"message": {"content": stolen}}]}
    assert CARD not in other.restorer.whole(answer)["choices"][0]["message"]["content"]


def test_pseudonym_in_the_callers_text_is_not_given_to_another_value() -> None:
    drawn = (
        SHIELD.protect(chat(f"card {CARD}"), b"c").call.body["messages"][0]["content"].removeprefix("card ")
    )
    guarded = SHIELD.protect(chat(f"card {CARD} and 1{drawn}"), b"c")
    assert drawn not in guarded.call.body["messages"][0]["content"].split(" and ")[0]


def test_maps_do_not_leak_across_conversations() -> None:
    one = SHIELD.protect(chat("jane@corp.example.org"), b"1")
    two = SHIELD.protect(chat("mary@corp.example.org"), b"2")
    assert two.restorer is not None
    hidden = one.call.body["messages"][0]["content"]
    answer = {"choices": [{"message": {"content": hidden}}]}
    assert two.restorer.whole(answer)["choices"][0]["message"]["content"] == hidden


@pytest.mark.parametrize("cut", range(1, 22))
def test_pseudonym_cut_between_chunks_is_restored(cut: int) -> None:
    text = "to Anna Miller, \u00e9t\u00e9 yes"
    restorer = Restorer({"Anna Miller": "J\u00fcrgen \u201eX\u201c"})
    parts = [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in (text[:cut], text[cut:])]
    out = [*restorer.chunks(parts[:1]), *restorer.chunks(parts[1:]), *restorer.flush()]
    said = "".join(chunk["choices"][0]["delta"]["content"] for chunk in out)
    assert said == "to J\u00fcrgen \u201eX\u201c, \u00e9t\u00e9 yes"


def test_hold_back_is_bounded_by_the_longest_pseudonym() -> None:
    restorer = Restorer({"Anna Miller": "x"})
    said = "".join(
        chunk["choices"][0]["delta"]["content"]
        for _ in range(500)
        for chunk in restorer.chunks([{"choices": [{"index": 0, "delta": {"content": "Anna Mil"}}]}])
    )
    assert len(said) >= 500 * 8 - len("Anna Miller")


@pytest.mark.parametrize(
    "text",
    ["a." * 20_000, "A-" * 20_000 + "@", "1 " * 20_000, "1 A" * 15_000, "x@" * 20_000, "@" * 40_000, "eyJ" * 14_000, "A " * 20_000,
     "-----BEGIN PRIVATE KEY-----" * 1_500, ":" * 40_000, "in of " * 7_000, "a" * 40_000 + "@", "+1" * 20_000, "http://" * 6_000],
)  # fmt: skip
def test_text_made_to_be_slow_is_not(text: str) -> None:
    started = time.process_time()
    DETECTOR.find(text)
    assert time.process_time() - started < 3


def test_values_reach_no_log_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(Refused) as caught:
        SHIELD.protect(chat("AKIAIOSFODNN7EXAMPLE"), b"c")
    assert "AKIA" not in caplog.text + repr(caught.value) + str(caught.value.rules)
