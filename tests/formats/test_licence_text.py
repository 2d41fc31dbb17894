"""Licence texts: any layout of the standard words is exact, any other word is not."""

import base64
import json
import re
import struct
import time
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.formats.licence_text import (
    MAX_CHARS,
    MAX_STATEMENT_WORDS,
    MAX_TITLE_WORDS,
    SKETCH_RUNS,
    named,
    recognise,
    words_of,
)

APACHE = (Path(__file__).parents[2] / "LICENSE").read_text()
MIT = (
    "MIT License\n"
    "\n"
    "Copyright (c) 2024 Somebody\n"
    "\n"
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software "
    'and associated documentation files (the "Software"), to deal in the Software without '
    "restriction, including without limitation the rights to use, copy, modify, merge, publish, "
    "distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the "
    "Software is furnished to do so, subject to the following conditions:\n"
    "\n"
    "The above copyright notice and this permission notice shall be included in all copies or "
    "substantial portions of the Software.\n"
    "\n"
    'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING '
    "BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND "
    "NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, "
    "DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, "
    "OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.\n"
)
APACHE_WORDS = [match.span() for match in re.finditer(r"[A-Za-z]{4,}", APACHE[:9000])][40:]


def exact(text):
    found = recognise(text)
    return found.licence if found and found.is_exact else None


@pytest.mark.parametrize(
    "change",
    [
        lambda t: " ".join(t.split()),
        lambda t: "\n".join(f"  * {line}" if line else "" for line in t.splitlines()),
        lambda t: t.replace('"', "\u201c").replace("'", "\u2019"),
        lambda t: t.replace("\n", "\r\n"),
        lambda t: t.upper(),
        lambda t: "# Licence\n\n" + t.replace('"', "**"),
        lambda t: "\ufeff" + t,
        lambda t: "Copyright © 2026 Åsa Öberg and contributors. All rights reserved.\n\n" + t,
    ],
    ids=["reflowed", "bullets", "quotes", "crlf", "capitals", "markdown", "bom", "holder"],
)
@pytest.mark.parametrize(("text", "licence"), [(APACHE, "Apache-2.0"), (MIT, "MIT")], ids=["apache", "mit"])
def test_layout_does_not_count(text, licence, change):
    assert exact(change(text)) == licence


def test_apache_without_its_appendix_is_apache():
    assert exact(APACHE.partition("END OF TERMS")[0]) == "Apache-2.0"


def test_mit_of_another_holder_is_mit():
    assert exact(MIT.replace("Somebody", "Will Riley <will@example.org>")) == "MIT"
    assert exact(MIT.replace("THE AUTHORS OR COPYRIGHT HOLDERS", "EXAMPLE LABORATORIES")) == "MIT"


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(APACHE_WORDS), st.sampled_from(["not", "never", "revocable", "commercial", "zzz"]))
def test_one_other_word_is_another_licence(span, word):
    found = recognise(APACHE[: span[0]] + word + APACHE[span[1] :])
    assert (found.licence, found.is_exact) == ("Apache-2.0", False)
    assert found.similarity > 0.9


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(APACHE_WORDS))
def test_one_word_less_is_another_licence(span):
    assert exact(APACHE[: span[0]] + APACHE[span[1] :]) is None


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=400))
def test_any_text_is_answered(text):
    found = recognise(text)
    assert found is None or 0 <= found.similarity <= 1


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, len(MIT) - 1),
    st.sampled_from("\u200b\u00ad\u2060\u0430\u0435\u043e\u0455\u24dd\U0001f17d"),
)
def test_hidden_or_foreign_character_in_the_terms_is_seen(at, char):
    start, end = MIT.index("Permission"), MIT.index("THE AUTHORS")  # the holder's name is open
    at = start + 1 + at % (end - start - 2)
    assert exact(MIT[:at] + char + MIT[at:]) is None


def test_full_width_not_is_a_word():
    changed = MIT.replace("is hereby granted", "is \uff4e\uff4f\uff54 hereby granted")
    assert changed != MIT
    assert exact(changed) is None


def test_changed_text_is_named_with_its_share():
    found = recognise(APACHE.replace("perpetual", "revocable", 1))
    assert (found.licence, found.is_exact) == ("Apache-2.0", False)
    assert re.fullmatch(r"has 9\d% of its wording: terms were changed", found.remark)


def test_added_terms_are_counted():
    found = recognise(MIT + "\nThe Software shall be used for Good, not Evil.\n")
    assert (found.licence, found.is_exact, found.extra_words) == ("MIT", False, 9)
    assert found.remark == "with 9 words that belong to no licence text"


def test_two_licences_in_one_text_are_both_named():
    assert exact(APACHE + "\n\n" + MIT) == "Apache-2.0 AND MIT"
    third_party = APACHE + "\nThird-party software comes under these terms:\n" + MIT
    assert recognise(third_party).licence == "Apache-2.0 AND MIT"
    assert exact(third_party) is None


def test_terms_in_a_copyright_line_are_terms():
    line = "Copyright (c) 2024 Somebody. Commercial use is forbidden.\n"
    assert exact(MIT.replace("Copyright (c) 2024 Somebody\n", line)) is None


def test_copyright_statement_at_its_limit_and_past_it():
    statement = "Copyright " + "word " * MAX_STATEMENT_WORDS
    assert exact(statement + "\n" + MIT.partition("\n\n")[2]) == "MIT"
    assert exact(statement + "word\n" + MIT.partition("\n\n")[2]) is None


def test_title_words_at_their_limit_and_past_it():
    terms = MIT[MIT.index("Permission") :]
    assert exact("word " * MAX_TITLE_WORDS + "\n" + terms) == "MIT"
    assert exact("word " * (MAX_TITLE_WORDS + 1) + "\n" + terms) is None
    assert exact(terms + "\nword") is None


def test_text_at_the_limit_and_past_it():
    assert exact(MIT + " " * (MAX_CHARS - len(MIT))) == "MIT"
    assert exact(MIT + " " * (MAX_CHARS - len(MIT) + 1)) is None


@pytest.mark.parametrize(
    "text",
    [
        "permission is hereby granted free of charge to any person obtaining " * 15_000,
        "neither the name of " * 50_000,
        "in no event shall " * 55_000,
        "1. " * 350_000,
        "(" * 1_000_000,
        "](https://" * 100_000,
        "copyright (c) " * 70_000,
        APACHE * 90,
    ],
    ids=["anchors", "names", "events", "bullets", "brackets", "links", "copyright", "copies"],
)
def test_text_made_to_exhaust_the_comparison_ends_soon(text):
    began = time.monotonic()
    recognise(text)
    assert time.monotonic() - began < 8  # alone it takes one or two


def test_community_licence_is_named_by_its_notice():
    notice = "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc."
    assert named(notice) == "LicenseRef-scancode-llama-3.1-license-2024"
    assert named("This product includes software under the Apache License, Version 2.0, January 2004") is None


def test_unknown_prose_is_no_licence():
    assert recognise("You may do with this model what the weather allows.") is None
    assert recognise("") is None


def test_words_of_a_url_do_not_depend_on_its_scheme():
    assert words_of("see https://www.example.org/a") == words_of("see http://example.org/a")


def test_data_file_holds_hashes_and_no_words():
    table = json.loads(resources.files("steelyard").joinpath("data/licences/texts.json").read_text())
    assert all(re.fullmatch(r"[0-9a-f]{32}", entry[3]) for entry in table["passages"])
    for _, count, sketch in table["sketches"]:
        data = base64.b64decode(sketch)
        hashes = [value for (value,) in struct.iter_unpack(">I", data)]
        assert hashes == sorted(set(hashes))
        assert len(hashes) <= min(SKETCH_RUNS, count)
    assert {"Apache-2.0", "MIT", "GPL-3.0-only"} <= table["osi"].keys()
    assert "CC-BY-4.0" not in table["osi"]
