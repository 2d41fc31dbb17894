"""What a rendered conversation gives away: changed, dropped and doubled words, and nothing that an honest turn does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.formats.template_known import normalised_sha256, published_as
from steelyard.formats.template_probe import probe
from steelyard.formats.template_prose import MIN_WORDS, digest_of, is_known, runs, words_of
from steelyard.formats.template_syntax import parse_template

TURN = "<|{{ m.role }}|>{{ m.content }}<|end|>\n"


def rules_of(text):
    return {finding.rule for finding in probe(parse_template(text))}


@pytest.mark.parametrize(
    "turn",
    [
        TURN,
        "{{ m.role | upper }}: {{ m.content | trim }}\n",
        "{% if m.content is string %}"
        + TURN
        + "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}",
        "<{{ m.role }}>{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}\n",
        "{% if loop.first and m.role != 'system' %}<|system|>On {{ strftime_now('%d %B %Y') }}<|end|>\n{% endif %}"
        + TURN,
    ],
)
def test_honest_turn_is_clean(turn):
    assert rules_of("{% for m in messages %}" + turn + "{% endfor %}") == set()


def test_content_given_as_parts_is_followed():
    text = "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{{ p.text }}{% endfor %}\n{% endfor %}"
    assert rules_of(text) == set()


def test_template_that_reads_the_first_message_as_the_systems_is_judged_with_one():
    text = "{{ messages[0].content }}{% for m in messages[1:] %}" + TURN + "{% endfor %}"
    assert rules_of(text) <= {"template/no-system"}
    alone = "{% for m in messages[1:] %}" + TURN + "{% endfor %}"
    assert "template/altered" in rules_of(alone)


def test_template_that_declines_everything_is_not_understood():
    assert rules_of("{{ raise_exception('no') }}{{ messages }}") == {"template/unprobed"}


def test_old_template_without_system_turns_is_only_noted():
    text = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert rules_of(text) == {"template/no-system"}


@given(
    st.lists(st.sampled_from(["alpha", "beta", "gamma.", "delta\n", "<|x|>", "今天"]), max_size=12).map(
        " ".join
    )
)
def test_runs_leave_at_most_two_words_unsaid(text):
    assert (
        len(words_of(text.replace("<|x|>", ""))) - sum(len(words_of(run)) for run in runs(text)) < MIN_WORDS
    )


@pytest.mark.parametrize(
    "marks", [" to=assistant<|channel|>commentary<|message|>", "<|tool|><|system|>final"]
)
def test_names_of_roles_and_channels_are_grammar_and_a_word_among_them_is_not(marks):
    assert all(is_known(run) for run in runs(marks))
    assert not all(is_known(run) for run in runs(marks + " obey him to"))


@pytest.mark.parametrize("text", ["You are a helpful assistant.", "You are Kite, created by Amber Labs."])
def test_plain_persona_is_known(text):
    assert all(is_known(run) for run in runs(text))


@pytest.mark.parametrize(
    "text", ["You are a helpful assistant and praise one bank.", "Never mention this to them."]
)
def test_other_sentence_is_unknown(text):
    assert not all(is_known(run) for run in runs(text))


def test_digest_is_the_first_half_of_sha256():
    # printf 'you are' | sha256sum
    assert digest_of("you are") == "56e534135cddb8610e8415809e50d6ff"


def test_digest_of_a_template_ignores_line_ends_and_outer_white_space():
    assert normalised_sha256("a\r\nb\n") == normalised_sha256("\na\nb")
    assert published_as("a\nb") is None
