"""An environment as pip leaves it, and every way to slip something in."""

import base64
import hashlib

import pytest

from steelyard.admit.environment import irregularities, packages


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@pytest.fixture
def site(tmp_path):
    files = {"thing/__init__.py": b"VALUE = 1\n", "thing/data.txt": b"text"}
    info = tmp_path / "thing-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.2\n")
    lines = ["thing-1.2.dist-info/METADATA,,", "thing-1.2.dist-info/RECORD,,"]
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        lines.append(f"{name},sha256={digest(data)},{len(data)}")
    (info / "RECORD").write_text("\n".join(lines) + "\n")
    cache = tmp_path / "thing" / "__pycache__"
    cache.mkdir()
    (cache / "__init__.cpython-311.pyc").write_bytes(b"compiled")
    return tmp_path


def rules(site):
    return [(item.rule, item.path) for item in irregularities(site)]


def test_untouched_environment_is_as_recorded(site):
    assert rules(site) == []
    assert [(p.name, p.version) for p in packages([str(site)])] == [("thing", "1.2")]


def test_changed_file_is_found(site):
    (site / "thing" / "__init__.py").write_bytes(b"VALUE = 2\n")
    assert rules(site) == [("environment/changed", "thing/__init__.py")]


def test_missing_file_is_found(site):
    (site / "thing" / "data.txt").unlink()
    assert rules(site) == [("environment/missing", "thing/data.txt")]


@pytest.mark.parametrize(
    "name", ["sitecustomize.py", "thing/extra.py", "fast.so", "thing/__pycache__/gone.cpython-311.pyc"]
)
def test_code_that_nobody_recorded_is_found(site, name):
    (site / name).write_bytes(b"x")
    assert rules(site) == [("environment/unowned", name)]


@pytest.mark.parametrize("line", ["import os; os.system('true')", "import\tos", "import thing; import os;"])
def test_start_up_line_is_found(site, line):
    (site / "evil.pth").write_text(f"# note\n{line}\n")
    assert ("environment/start-up", "evil.pth") in rules(site)


def test_setuptools_shim_is_known_and_one_with_more_is_not(site):
    shim = "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local'; "
    shim += "enabled and __import__('_distutils_hack').add_shim(); "
    path = site / "distutils-precedence.pth"
    path.write_text(shim + "\n")
    assert ("environment/start-up", path.name) not in rules(site)
    path.write_text(shim + "os.system('true')\n")
    assert ("environment/start-up", path.name) in rules(site)


def test_path_line_is_a_question(site):
    (site / "editable.pth").write_text("/somewhere/else\n")
    assert ("environment/path", "editable.pth") in rules(site)


def test_package_without_a_record_is_a_question(site):
    (site / "thing-1.2.dist-info" / "RECORD").unlink()
    assert ("environment/unrecorded", "thing") in rules(site)
