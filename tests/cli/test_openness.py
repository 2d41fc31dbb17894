"""`steelyard openness`, typed as a user would."""

import os
import subprocess
import sys

import pytest


def test_open_release_in_a_folder_is_0(shell, helpdesk):
    found = shell.json("openness", helpdesk)
    assert found["is_open"] is True
    assert (found["openness"]["weights"], found["licence"]["expression"]) == ("available", "Apache-2.0")
    assert found["openness"]["mof"]["missing"] == ["Data card", "Technical report", "Evaluation results"]
    assert shell("openness", helpdesk) == 0
    assert "MOF class     none" in shell.out
    assert "for III: Data card, Technical report, Evaluation results" in shell.out


def test_restricted_release_in_a_folder_is_1(shell, helpdesk):
    (helpdesk / "LICENSE").unlink()
    (helpdesk / "README.md").write_text("---\nlicense: llama3.1\nbase_model: meta-llama/Llama-3.1-8B\n---\n")
    assert shell("openness", helpdesk) == 1
    assert "700 million" in shell.out
    assert "OSAID 1.0     no" in shell.out


def test_conflict_shows_every_claim(shell, helpdesk):
    (helpdesk / "README.md").write_text(
        "---\nlicense: apache-2.0\nbase_model: meta-llama/Llama-3.1-8B\n---\n"
    )
    assert shell("openness", helpdesk) == 1
    assert "its sources disagree" in shell.out
    assert "made from meta-llama/Llama-3.1-8B, LicenseRef-scancode-llama-3.1-license-2024" in shell.out


def test_folder_without_weights_is_1(shell, helpdesk):
    (helpdesk / "model.safetensors").unlink()
    assert shell.json("openness", helpdesk, code=1)["openness"]["weights"] == "absent"


def test_known_model_is_answered_from_its_evidence(yard, helpdesk):
    assert yard("admit", helpdesk) == 0
    for file in helpdesk.iterdir():
        file.unlink()
    found = yard.json("openness", "helpdesk")
    assert (found["about"], found["is_open"], found["name"]) == ("release", True, "helpdesk")


def test_closed_service_is_not_admissible(shell):
    assert shell("openness", "ChatGPT") == 1
    assert "not admissible: no weights are published" in shell.out
    assert shell.json("openness", "Claude 4", code=1)["register"]["weights"] == "none"


@pytest.mark.parametrize(
    ("name", "code"), [("Grok-1", 0), ("Grok-2", 1), ("Llama-3.3-70B", 1), ("gpt-oss-120b", 0)]
)
def test_release_in_the_register_is_a_hint(shell, name, code):
    assert shell("openness", name) == code
    assert "A hint about the release" in shell.out
    assert "source: " in shell.out


def test_unknown_name_is_2_with_near_names(shell):
    assert shell("openness", "lama-3") == 2
    assert "near it: Llama 3" in shell.err


def test_help_loads_none_of_the_tables():
    code = "import sys; from steelyard.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('steelyard.admit' in sys.modules, 'license_expression' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "False False"
