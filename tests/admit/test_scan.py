"""The scan: real directories by the libraries that write them are understood, and nothing unread is ever clean."""

import json
from datetime import UTC, datetime

import pytest

from steelyard.admit.examiners import examine_all
from steelyard.admit.rules import all_rules, registry
from steelyard.admit.scan import Verdict, scan
from steelyard.cli.main import main
from steelyard.errors import WrongUsage
from steelyard.formats.base import Report
from steelyard.formats.registry import Registry

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TEMPLATE = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(
        models.BPE(vocab={"<unk>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")], unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<unk>")
    fast.chat_template = TEMPLATE
    return fast


SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def saved(path, family, **options):
    import transformers

    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**SIZES))
    model.save_pretrained(path, **options)
    tokenizer().save_pretrained(path)
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return path


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Mistral", "Qwen3"])
def test_directory_written_by_transformers_is_admitted(tmp_path, family, capsys):
    path = saved(tmp_path / "m", family)
    assert main(["scan", str(path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["verdict"], value["findings"]) == ("admit", [])
    assert {"model.safetensors", "config.json", "generation_config.json"} <= {
        file["path"] for file in value["files"]
    }


def test_sharded_directory_is_admitted(tmp_path):
    path = saved(tmp_path / "m", "Llama", max_shard_size="20KB")
    found = scan(path, registry())
    assert len(list(path.glob("*.safetensors"))) > 1
    assert (found.verdict, list(found.findings())) == (Verdict.ADMIT, [])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_state_dict_written_by_torch_is_admitted(tmp_path, name):
    import torch

    torch.save({"w": torch.ones(3, 4), "b": torch.zeros(4, dtype=torch.bfloat16)}, tmp_path / name)
    found = scan(tmp_path / name, registry())
    assert (found.verdict, list(found.findings())) == (Verdict.ADMIT, [])


def test_gguf_file_written_by_gguf_is_admitted(tmp_path):
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", np.ones((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert main(["scan", str(tmp_path / "m.gguf")]) == 0


def test_truncated_weights_are_refused(tmp_path):
    path = saved(tmp_path / "m", "Llama")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["scan", str(path)]) == 1


def test_source_file_makes_a_review_and_is_no_yes(tmp_path):
    path = saved(tmp_path / "m", "Llama")
    (path / "modeling.py").write_text("import os\n")
    assert scan(path, registry()).verdict is Verdict.REVIEW
    assert main(["scan", str(path)]) == 1


def test_missing_path_and_empty_directory_are_wrong_usage(tmp_path):
    assert main(["scan", str(tmp_path / "none")]) == 2
    assert main(["scan", str(tmp_path)]) == 2
    with pytest.raises(WrongUsage):
        scan(tmp_path, registry())


def test_text_output_names_rule_place_attack_and_mend(tmp_path, capsys):
    (tmp_path / "chat_template.jinja").write_text("{{ x.__class__ }}")
    assert main(["scan", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    rule = all_rules()["template/attribute"]
    for part in (
        "template/attribute",
        "chat_template.jinja",
        "__class__",
        rule.attack,
        rule.mend,
        "reject",
        "oms-sha256:",
    ):
        assert part in printed


def test_each_examiner_states_its_predicate(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "m.py").write_text("import os\n")
    said = {predicate.type: predicate.body for predicate in examine_all(scan(tmp_path, registry()), NOW)}
    kinds = [name.split(":")[2] for name in said]
    assert sorted(kinds) == ["formats", "licence", "manifest", "openness", "scan"]
    assert {body["issued_at"] for body in said.values()} == {"2026-11-22T12:00:00Z"}
    of = {name.split(":")[2]: body for name, body in said.items()}
    assert (of["scan"]["verdict"], [(r["rule"], r["path"]) for r in of["scan"]["review"]]) == (
        "review", [("code/python", "m.py")],
    )  # fmt: skip
    assert of["formats"]["counts"] == {"code": 1, "text": 1}
    assert (of["licence"]["expression"], of["openness"]["weights"]) == ("MIT", "absent")
    assert of["manifest"]["root"] == scan(tmp_path, registry()).model.digest.hex


def test_every_rule_says_what_it_stops_and_how_to_mend():
    assert [name for name, rule in all_rules().items() if len(rule.attack) < 15 or len(rule.mend) < 8] == []


class Swapper:
    """A format that rewrites the file while it is examined, as an attacker with write access would."""

    name = "swapper"

    def __init__(self, path):
        self.path = path
        self.rules = {}

    def sniff(self, head, path):
        return True

    def read(self, source, path):
        self.path.write_bytes(b"what is loaded")
        return Report(self.name)


def test_file_swapped_between_hash_and_examination_is_refused(tmp_path):
    (tmp_path / "weights").write_bytes(b"what is hashed")
    found = scan(tmp_path, Registry((Swapper(tmp_path / "weights"),)))
    assert found.verdict is Verdict.REJECT
    assert [finding.rule for finding in found.tree] == ["tree/changed-while-reading"]


def test_file_added_while_the_tree_is_examined_is_refused(tmp_path):
    (tmp_path / "weights").write_bytes(b"what is hashed")
    found = scan(tmp_path, Registry((Swapper(tmp_path / "added"),)))
    assert found.verdict is Verdict.REJECT
