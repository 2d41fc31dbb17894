"""Honest templates, in the style of the families that people run, pass; limits hold at the limit and one past it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment

from steelyard.formats.base import BytesSource, Severity
from steelyard.formats.chat_template import (
    FORMAT,
    MAX_CHARS,
    RULES,
    examine_template,
)
from steelyard.formats.template_syntax import MAX_BRACKETS, MAX_RANGE

HONEST = {
    "turns with markers": (
        "{% for turn in messages %}{{ '<|begin|>' + turn['role'] + '\\n' + turn['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|begin|>assistant\\n' }}{% endif %}"
    ),
    "alternating roles with a folded system turn": """
{%- if messages[0]['role'] == 'system' -%}
  {%- set first, rest = messages[0]['content'] | trim, messages[1:] -%}
{%- else -%}{%- set first, rest = '', messages -%}{%- endif -%}
{%- for turn in rest -%}
  {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('must alternate') }}{%- endif -%}
  {%- if loop.first and first is not none -%}{%- set said = first ~ '\\n\\n' ~ turn['content'] -%}
  {%- else -%}{%- set said = turn['content'] -%}{%- endif -%}
  {{- bos_token ~ '[ASK] ' ~ said.strip() ~ ' [/ASK]' if turn['role'] == 'user' else ' ' ~ said ~ eos_token -}}
{%- endfor -%}""",
    "tools and thoughts, looking back for the last question": """
{%- set state = namespace(searching=true, last=messages|length - 1) -%}
{%- for turn in messages[::-1] -%}
  {%- set place = (messages|length - 1) - loop.index0 -%}
  {%- if state.searching and turn.role == 'user' and not turn.content.startswith('<result>') -%}
    {%- set state.searching = false -%}{%- set state.last = place -%}
  {%- endif -%}
{%- endfor -%}
{%- for turn in messages -%}
  {%- set said = turn.content if turn.content is string else '' -%}
  {%- set thought = '' -%}
  {%- if '</thought>' in said -%}
    {%- set thought = said.split('</thought>')[0].rstrip('\\n').split('<thought>')[-1].lstrip('\\n') -%}
    {%- set said = said.split('</thought>')[-1].lstrip('\\n') -%}
  {%- endif -%}
  {%- if loop.index0 > state.last and (loop.last or messages[loop.index0 + 1].role == 'user') -%}
    {{- thought -}}{%- endif -%}
  {%- for call in turn.tool_calls -%}
    {%- if call.function is defined -%}{%- set call = call.function -%}{%- endif -%}
    {{- '<call>' ~ call.name ~ (call.arguments if call.arguments is string else call.arguments | tojson) ~ '</call>' -}}
  {%- endfor -%}
  {{- said -}}
{%- endfor -%}""",
    "a recursive macro over a schema, a date, tools by kind": """
{%- macro kind(spec, needed, optional=false) -%}
  {%- if spec.type == 'array' -%}{{ kind(spec['items'], needed) + '[]' }}
  {%- elif spec.oneOf -%}{%- for one in spec.oneOf -%}{{ kind(one, needed) }}{{ ' | ' if not loop.last }}{%- endfor -%}
  {%- elif spec.enum -%}{{ '"' + spec.enum | join('" | "') + '"' }}
  {%- elif spec.properties -%}{%- for name, part in spec.properties.items() -%}
    {{- name ~ ('?' if name not in (spec.required or []) else '') ~ ': ' ~ kind(part, spec.required or []) -}}
  {%- endfor -%}{%- else -%}any{%- endif -%}
{%- endmacro -%}
{%- if not date_string is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}{%- endif -%}
{%- set out = namespace(text='') -%}
{%- for tool in tools | selectattr('type', 'equalto', 'function') | list -%}
  {%- set out.text = out.text ~ '\\n' ~ tool.function.name | title ~ kind(tool.function.parameters, []) -%}
  {{- descriptions[tool.function.name] -}}
{%- endfor -%}{{ out.text | indent(4) }}{{ date_string }}""",
    "training marks, blocks and loop controls": """
{% for turn in messages %}{% if turn.role == 'tool' %}{% continue %}{% endif %}
{% set head %}<{{ turn.role | upper }}>{% endset %}{{ head }}
{% if turn.role == 'assistant' %}{% generation %}{{ turn.content | default('', true) }}{% endgeneration %}
{% else %}{{ turn.content }}{% endif %}
{% if loop.index > 200 %}{% break %}{% endif %}{% endfor %}{% for n in range(3) %}{{ n * 2 }}{% endfor %}""",
    "pictures between words": """
{%- set seen = namespace(pictures=0) -%}{%- for turn in messages -%}{%- for part in turn.content -%}
{%- if part.type == 'image' or 'image' in part -%}{%- set seen.pictures = seen.pictures + 1 -%}
{{- 'Picture ' ~ seen.pictures -}}{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endfor -%}""",
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_template_is_clean(name):
    assert [f for f in examine_template(HONEST[name]) if RULES[f.rule].severity is not Severity.NOTE] == []


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_examined_without_raising_and_names_listed_rules(text):
    assert {finding.rule for finding in examine_template(text)} <= set(RULES)


_PIECES = st.sampled_from(
    ["{{", "}}", "{%", "%}", " messages ", ".role", "['content']", "|join", "|trim", "~", "+", "for x in ", "endfor",
     "if ", "endif", "set a = ", "a", "1", "'t'", "macro m(x)", "endmacro", "(", ")", "[", "]", "loop.index0",
     "range(3)"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=25).map(" ".join))
@settings(max_examples=300, deadline=None)
def test_what_is_clean_parses_in_a_plain_environment(text):
    """Clean never means that our parser reads more than Jinja's own does."""
    if not examine_template(text):
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(HONEST)), st.sampled_from(["{{ x.__class__ }}", "{{ x|attr('y') }}", "{{ f(1) }}"])
)
def test_adding_an_attack_to_an_honest_template_refuses(name, attack):
    assert examine_template(attack + HONEST[name])
    assert examine_template(HONEST[name] + attack)


def test_messages_name_the_line():
    (finding,) = examine_template("a\n\n{{ messages|pprint }}")
    assert (finding.rule, finding.message[:7]) == ("template/filter", "line 3:")


def test_size_at_the_limit_and_one_past_it():
    assert examine_template("a" * MAX_CHARS) == ()
    assert [f.rule for f in examine_template("a" * (MAX_CHARS + 1))] == ["template/size"]


def test_brackets_at_the_limit_and_one_past_it():
    def nested(depth):
        return "{{" + "(" * depth + "a" + ")" * depth + "}}"

    # The two braces count too.
    assert [f.rule for f in examine_template(nested(MAX_BRACKETS - 1))] == ["template/size"]
    assert examine_template(nested(20)) == ()


def test_range_at_the_limit_and_one_past_it():
    loop = "{% for i in range(LIMIT) %}{{ i }}{% endfor %}"
    assert examine_template(loop.replace("LIMIT", str(MAX_RANGE))) == ()
    assert {f.rule for f in examine_template(loop.replace("LIMIT", str(MAX_RANGE + 1)))} == {"template/cost"}


def test_key_from_the_conversation_is_read_but_not_one_that_is_built():
    assert examine_template("{% for k in tool.keys() %}{{ tool[k] }}{% endfor %}") == ()
    assert [f.rule for f in examine_template("{{ tool['a' ~ k] }}")] == ["template/computed-key"]


def test_address_in_a_comment_is_no_part_of_the_prompt():
    assert examine_template("{# https://example.org #}hello") == ()


def test_file_is_claimed_by_name_and_read_whole():
    assert FORMAT.sniff(b"{{ a }}", "sub/chat_template.jinja")
    assert not FORMAT.sniff(b"{{ a }}", "template.txt")
    assert FORMAT.read(BytesSource(b"{{ a }}"), "chat_template.jinja").findings == ()
