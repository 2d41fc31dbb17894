import time

import pytest

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.yaml_file import FORMAT


def rules_of(text: str, name: str = "config.yaml") -> set[str]:
    try:
        return {finding.rule for finding in FORMAT.read(BytesSource(text.encode()), name).findings}
    except Malformed as broken:
        return {broken.rule}


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.exec", "subprocess.Popen", "nemo.collections.evil", "nemo_collections.asr.Evil",
        "torch.hub.load", "torch.nn.Module.register_full_backward_hook", "nemo.collections.asr.models.A.restore_from",
        "nemo.utils.Exec", "t\u043erch.nn.Linear", "torch.nn.functional.relu", "[os, system]",
    ],
)  # fmt: skip
def test_hydra_target_refuses(target: str) -> None:
    assert rules_of(f"model:\n  loss:\n    _target_: {target}\n") == {"yaml/instantiate"}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: !!python/object/apply:os.system ['true']\n", "yaml/tag"),
        ("!!python/name:os.system\n", "yaml/tag"),
        ("a: [!!python/object/new:type {}]\n", "yaml/tag"),
        ("a: &x [1]\nb: *x\n", "yaml/alias"),
        ("a: {<<: x}\n", "yaml/duplicate-key"),
        ("<<: x\n", "yaml/alias"),
        ("a: 1\na: 2\n", "yaml/duplicate-key"),
        ("a: 1\n---\nb: 2\n", "yaml/document"),
        ("%TAG ! tag:x,2000:\na: 1\n", "yaml/document"),
        ("a: 1\n\tb: 2\n", "yaml/syntax"),
        ("? a\n: b\n", "yaml/syntax"),
        ("a: b: c\n", "yaml/syntax"),
        ("a: [1, 2\n", "yaml/syntax"),
        ("a: \u202eb\n", "yaml/encoding"),
        ("- " * 200 + "a\n", "yaml/size"),
        ("auto_map:\n  AutoModel: modeling_evil.Evil\n", "config/remote-code"),
        ("trust_remote_code: yes\n", "config/remote-code"),
        ("class_path: os.system\ninit_args: {}\n", "yaml/instantiate"),
        ("_type: llm_bash_chain\n", "yaml/instantiate"),
        ("_type: prompt\ntemplate: x\ntemplate_format: jinja2\n", "yaml/instantiate"),
        ("class_name: Lambda\nconfig: {}\n", "keras/code"),
        ("name: p\nentry_points:\n  main:\n    command: rm -rf x\n", "mlflow/project"),
        ("dependencies:\n- pip:\n  - git+https://evil/x.git\n", "conda/source"),
        ("dependencies:\n- pip:\n  - --extra-index-url http://evil\n", "conda/source"),
        ("dependencies:\n- pip:\n  - x @ file:///tmp/x\n", "conda/source"),
    ],
)
def test_text_that_runs_or_hides_something_refuses(text: str, rule: str) -> None:
    assert {rule} <= rules_of(text) <= {rule, "config/remote-code"}  # remote code in JSON is so here too


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("flavors:\n  python_function:\n    loader_module: evil_loader\n", "mlflow/flavour"),
        ("flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n", "mlflow/flavour"),
        ("flavors:\n  python_function:\n    loader_module: mlflow.sklearn.evil\n", "mlflow/flavour"),
        ("flavors:\n  sklearn:\n    code: code\n", "mlflow/flavour"),
        ("flavors:\n  sklearn:\n    pickled_model: ../../../etc/x.pkl\n", "mlflow/path"),
        ("flavors:\n  sklearn:\n    pickled_model: s3://evil/x.pkl\n", "mlflow/path"),
        ("flavors:\n  my_flavour:\n    a: 1\n", "mlflow/flavour"),
        ("run_id: x\n", "mlflow/flavour"),
    ],
)
def test_mlflow_model_of_ones_own_code_refuses(text: str, rule: str) -> None:
    assert rules_of(text, "MLmodel") == {rule}


def test_mlproject_refuses_whatever_it_holds() -> None:
    assert rules_of("name: x\n", "MLproject") == {"mlflow/project"}


@pytest.mark.parametrize(
    "bomb", ["a: [" + "[" * 10, "[{" * 100_000, "a: '" + "x\n" * 300_000, "- \n" * 100_001]
)
def test_bomb_ends_in_a_refusal_soon(bomb: str) -> None:
    began = time.perf_counter()
    assert rules_of(bomb)
    assert time.perf_counter() - began < 2
