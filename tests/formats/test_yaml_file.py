import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.yaml_file import FORMAT
from steelyard.formats.yaml_subset import MAX_DEPTH, RULES, parse_yaml

MLMODEL = b"""artifact_path: model
flavors:
  python_function:
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.sklearn
    model_path: model.pkl
    predict_fn: predict
    python_version: 3.11.7
  sklearn:
    code: null
    pickled_model: model.pkl
    serialization_format: cloudpickle
    sklearn_version: 1.5.0
mlflow_version: 2.19.0
signature:
  inputs: '[{"type": "double", "name": "a"}]'
utc_time_created: '2025-01-01 10:00:00.000000'
"""


def test_text_means_what_yaml_says() -> None:
    text = b"""# a comment
---
name: "a\\tb"  # behind a value
'quoted key': 'it''s'
list:
- 1
- -2.5
- [yes, null, ~, {a: b, "c":1}]
- key: value
  other: |
    two
    lines
  nested:
    - - deep
plain: several words
  on two lines
url: http://example.org/a#b
flow: [1,
  2]
empty:
"""
    assert parse_yaml(text) == {
        "name": "a\tb",
        "quoted key": "it's",
        "list": [
            1,
            -2.5,
            [True, None, None, {"a": "b", "c": 1}],
            {"key": "value", "other": "two\nlines", "nested": [["deep"]]},
        ],
        "plain": "several words on two lines",
        "url": "http://example.org/a#b",
        "flow": [1, 2],
        "empty": None,
    }


def written(value: object, indent: int = 0) -> str:
    """A plain writer of block mappings and lists, for the round trip."""
    pad = "  " * indent
    if isinstance(value, dict):
        return (
            "".join(f"{pad}{key}:\n{written(each, indent + 1)}" for key, each in value.items())
            or f"{pad}{{}}\n"
        )
    if isinstance(value, list):
        return "".join(f"{pad}-\n{written(each, indent + 1)}" for each in value) or f"{pad}[]\n"
    return f"{pad}{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}\n"


_names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(
    lambda n: n not in {"null", "true", "false", "yes", "no", "on", "off"}
)
_trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | _names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=20,
)


@given(_trees)
def test_what_is_written_is_read(tree: object) -> None:
    assert parse_yaml(written(tree).encode()) == tree


@given(st.text(alphabet="ab:-[]{}'\"|>&*!#,\n \\?%@", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    found = set()
    try:
        parse_yaml(text.encode())
    except Malformed as broken:
        found.add(broken.rule)
    assert found <= set(RULES)


@pytest.mark.parametrize("mark", ["[", "- "])
def test_depth_is_bounded(mark: str) -> None:
    close = "]" if mark == "[" else "1"
    parse_yaml((mark * (MAX_DEPTH - 2) + close * (MAX_DEPTH - 2 if mark == "[" else 1)).encode())
    with pytest.raises(Malformed, match="levels"):
        parse_yaml((mark * (MAX_DEPTH + 2) + close * (MAX_DEPTH + 2 if mark == "[" else 1)).encode())


def test_model_of_a_known_flavour_names_its_file() -> None:
    report = FORMAT.read(BytesSource(MLMODEL), "MLmodel")
    assert report.findings == ()
    assert report.facts["flavours"] == ["python_function", "sklearn"]
    assert {reference.path for reference in report.references} == {"model.pkl"}


def test_training_recipe_of_nemo_is_clean() -> None:
    text = (
        b"model:\n  encoder:\n    _target_: nemo.collections.asr.modules.ConformerEncoder\n    d_model: 512\n"
    )
    assert FORMAT.read(BytesSource(text), "model_config.yaml").findings == ()


def test_prompt_of_langchain_is_clean() -> None:
    text = b"_type: prompt\ninput_variables: [a]\ntemplate: Tell me of {a}\n"
    assert FORMAT.read(BytesSource(text), "prompt.yaml").findings == ()


def test_environment_of_mlflow_is_clean() -> None:
    text = b"python: 3.11.7\nbuild_dependencies:\n- pip==23.2.1\ndependencies:\n- -r requirements.txt\n"
    assert FORMAT.read(BytesSource(text), "python_env.yaml").findings == ()


def test_conda_environment_is_clean() -> None:
    text = b"name: env\nchannels:\n- conda-forge\ndependencies:\n- python=3.11\n- pip<=23\n- pip:\n  - mlflow==2.19.0\n"
    assert FORMAT.read(BytesSource(text), "conda.yaml").findings == ()
