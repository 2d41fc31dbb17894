"""Laws and known answers of finding personal data."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Refused
from steelyard.privacy.detect import MAX_TEXT_CHARS, Detector

FAST, PLAIN = Detector(), Detector(fast=False)
PIECES = st.sampled_from([
    "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "john@example.org", "John Smith", "SSN 536-90-4399", "10.1.2.3",
    "+44 20 7946 0958", "passport", "X1234567", "born", "3 May 1971", "zip 90210", "AKIAIOSFODNN7EXAMPLE", "12 High Street",
    "\u00e9t\u00e9", "\u0664\u0662", "\u017f\u017fn", " ", "\n", ".", "-", "\0", "www.example.com", "vin", "PO Box 12", "7",
])  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES | st.text(max_size=6), max_size=14))
def test_both_first_passes_give_the_same_hits(pieces: list[str]) -> None:
    text = " ".join(pieces)
    assert FAST.find(text) == PLAIN.find(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=14))
def test_hits_are_in_order_and_apart(pieces: list[str]) -> None:
    hits = FAST.find("".join(pieces))
    assert all(one.end <= other.start for one, other in itertools.pairwise(hits))


# Numbers published as examples: card networks' test numbers, ECBS's IBAN, the NHS, INSEE and BZSt examples.
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("card 4111-1111-1111-1111 ok", "card"),
        ("378282246310005", "card"),
        ("IBAN GB82 WEST 1234 5698 7654 32", "iban"),
        ("mail jane.doe+x@example.co.uk", "email"),
        ("my ssn is 536-90-4399", "ssn"),
        ("from 203.0.113.7", "ip"),
        ("call +44 20 7946 0958", "phone"),
        ("NHS 943 476 5919", "national"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N", "secret"),
        ("pay 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "wallet"),
        ("VIN 1M8GDM9AXKP042788", "vehicle"),
        ("Dear Mr Featherstone, thank you", "person"),
    ],
)
def test_published_example_is_found(text: str, kind: str) -> None:
    assert kind in {hit.kind for hit in FAST.find(text)}


@pytest.mark.parametrize(
    "text",
    ["4111111111111112", "GB82 WEST 1234 5698 7654 33", "version 1.2.3.4", "policy no 000-12-3456", "ICD E11.9", "12.50 EUR",
     "550e8400-e29b-41d4-a716-446655440000", "invoice 2026-0001942"],
)  # fmt: skip
def test_look_alike_is_not_found(text: str) -> None:
    assert FAST.find(text) == []


def test_text_at_the_limit_is_scanned_and_one_past_refuses() -> None:
    assert FAST.find("a" * MAX_TEXT_CHARS) == []
    with pytest.raises(Refused):
        FAST.find("a" * (MAX_TEXT_CHARS + 1))
