"""What the shield lets through, and what it puts in the place of the rest."""

import json
from pathlib import Path

import pytest
from stdnum import iban

from steelyard.errors import Refused, Unavailable, WrongUsage
from steelyard.privacy.checks import is_card
from steelyard.privacy.detect import Detector, Hit
from steelyard.privacy.dictionary import Dictionary
from steelyard.privacy.settings import load_key, shield_of
from steelyard.privacy.shield import Shield
from steelyard.wire.call import Call

KEY = b"k" * 32


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    key = tmp_path / "keys" / "privacy.key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    return tmp_path


def chat(*texts: str) -> Call:
    return Call(
        "chat", "m", {"model": "m", "messages": [{"role": "user", "content": text} for text in texts]}
    )


def sent(shield: Shield, text: str, conversation: bytes = b"c") -> str:
    return shield.protect(chat(text), conversation).call.body["messages"][0]["content"]


def test_request_without_personal_data_is_unchanged(home: Path) -> None:
    call = chat("what does the policy cover?")
    guarded = shield_of({}, home, KEY).protect(call, b"c")
    assert (guarded.call, guarded.counts, guarded.restorer) == (call, {}, None)


def test_card_and_iban_keep_their_check_digits(home: Path) -> None:
    shield = shield_of({}, home, KEY)
    card = sent(shield, "4111 1111 1111 1111")
    account = sent(shield, "GB82 WEST 1234 5698 7654 32")
    assert is_card(card)
    assert card != "4111 1111 1111 1111"
    assert iban.is_valid(account, check_country=False)
    assert account != "GB82 WEST 1234 5698 7654 32"


def test_answer_gets_the_value_back(home: Path) -> None:
    guarded = shield_of({}, home, KEY).protect(chat("mail jane@corp.example.org now"), b"c")
    hidden = guarded.call.body["messages"][0]["content"]
    assert "jane" not in hidden
    assert guarded.counts == {"email": 1}
    answer = {"choices": [{"message": {"content": f"I did: {hidden}"}}]}
    assert guarded.restorer is not None
    assert (
        guarded.restorer.whole(answer)["choices"][0]["message"]["content"]
        == "I did: mail jane@corp.example.org now"
    )


def test_pseudonym_is_the_same_in_a_conversation_and_another_in_the_next(home: Path) -> None:
    shield = shield_of({}, home, KEY)
    assert sent(shield, "jane@corp.example.org", b"1") == sent(shield, "jane@corp.example.org", b"1")
    assert sent(shield, "jane@corp.example.org", b"1") != sent(shield, "jane@corp.example.org", b"2")


def test_blocked_class_refuses_and_mask_names_the_class(home: Path) -> None:
    table = {"actions": {"card": "block", "email": "mask"}}
    shield = shield_of(table, home, KEY)
    assert sent(shield, "to jane@corp.example.org") == "to [EMAIL]"
    with pytest.raises(Refused) as caught:
        sent(shield, "4111111111111111")
    assert caught.value.rules == ("privacy:card",)
    assert "4111" not in str(caught.value)


BODIES = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "S"}]}]},
    {"messages": [{"role": "user", "name": "S", "content": "x"}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a":"S"}'}}]}]},
    {"messages": [{"role": "tool", "tool_call_id": "a", "content": '{"a": ["S"]}'}]},
    {"tools": [{"type": "function", "function": {"name": "f", "description": "S", "parameters": {"enum": ["S"]}}}]},
    {"user": "S"}, {"metadata": {"k": "S"}}, {"prompt": ["S"]}, {"input": "S"}, {"stop": "S"}, {"unknown": [{"deep": "S"}]},
    {"id": "S"},
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_every_surface_is_scanned(home: Path, body: dict) -> None:
    body = json.loads(json.dumps(body).replace("S", "jane@corp.example.org"))
    guarded = shield_of({}, home, KEY).protect(Call("chat", "m", body), b"c")
    assert "jane@" not in json.dumps(guarded.call.body)
    assert guarded.counts["email"] >= 1


@pytest.mark.parametrize(
    ("body", "surface"),
    [
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]}, "image"),
        ({"messages": [{"content": [{"type": "input_audio", "input_audio": {}}]}]}, "audio"),
        ({"input": [[1, 2]]}, "tokens"),
        ({"prompt": [1, 2]}, "tokens"),
    ],
)
def test_what_cannot_be_scanned_needs_leave(home: Path, body: dict, surface: str) -> None:
    kind = "embedding" if "input" in body else "completion" if "prompt" in body else "chat"
    with pytest.raises(Refused):
        shield_of({}, home, KEY).protect(Call(kind, "m", body), b"c")
    guarded = shield_of({"allow": [surface]}, home, KEY).protect(Call(kind, "m", body), b"c")
    assert guarded.call.body == body


def test_failure_of_the_detector_refuses_without_its_words() -> None:
    class Broken(Detector):
        def find(self, text: str) -> list[Hit]:
            raise ValueError(text)

    with pytest.raises(Unavailable) as caught:
        Shield(KEY, detector=Broken()).protect(chat("jane@corp.example.org"), b"c")
    assert "jane" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "table",
    [{"colour": 1}, {"actions": {"cards": "mask"}}, {"actions": {"card": "hide"}}, {"regions": ["Germany"]},
     {"allow": ["video"]}, {"regions": "DE"}, {"customers": 3}],
)  # fmt: skip
def test_unknown_configuration_refuses(home: Path, table: dict) -> None:
    with pytest.raises(WrongUsage):
        shield_of(table, home, KEY)


def test_key_that_others_may_read_refuses(home: Path) -> None:
    path = home / "keys" / "privacy.key"
    path.chmod(0o644)
    with pytest.raises(WrongUsage):
        load_key(path)


def test_customers_are_found_whatever_their_case_and_not_kept_in_plain(home: Path) -> None:
    (home / "list").write_text("Zqor Blint\n")
    shield = shield_of({"customers": "list", "actions": {"customer": "mask"}}, home, KEY)
    assert sent(shield, "ask zqor blint or ZQOR BLINT") == "ask [CUSTOMER] or [CUSTOMER]"


def test_hashed_list_of_customers_holds_no_names_and_finds_them(home: Path) -> None:
    text = Dictionary.made(["Zqor Blint", "M\u00fcller-\u00d6zdemir"], KEY).dump()
    assert "zqor" not in text.lower()
    (home / "list").write_text(text)
    shield = shield_of({"customers": "list", "actions": {"customer": "mask"}}, home, KEY)
    assert sent(shield, "ask zqor  blint or MULLER OZDEMIR") == "ask [CUSTOMER] or [CUSTOMER]"
