"""One TOML file, unknown keys refuse."""

import pytest

from steelyard.config import DEFAULT_PORT, default_home, load_config
from steelyard.errors import WrongUsage
from steelyard.keys import new_key


def write(home, text):
    (home / "steelyard.toml").write_text(text)


def test_absent_file_means_safe_defaults(tmp_path):
    config = load_config(tmp_path)
    assert (config.host, config.port, config.plugins) == ("127.0.0.1", DEFAULT_PORT, ())


def test_values_are_read(tmp_path):
    write(tmp_path, 'plugins = ["x"]\n[serve]\nhost = "::1"\nport = 1')
    config = load_config(tmp_path)
    assert (config.host, config.port, config.plugins) == ("::1", 1, ("x",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extra = 1", "unknown key 'extra'"),
        ("[serve]\nextra = 1", "unknown key 'serve.extra'"),
        ("[serve]\nport = 65536", "port 65536"),
        ("[serve]\nport = true", "not of type int"),
        ('plugins = "x"', "not of type list"),
        ("plugins = [1]", "list of names"),
        ("serve = 1", "table"),
        ("[", "not TOML"),
    ],
)
def test_what_cannot_be_used_is_wrong_usage(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(WrongUsage, match=message):
        load_config(tmp_path)


def test_own_policy_replaces_the_shipped_one(tmp_path):
    config = load_config(tmp_path)
    assert config.policy().name == "default"
    own = config.policy().name
    text = (tmp_path / "policy.toml").write_text
    text(
        'version = 1\nname = "own"\n[[rule]]\nid = "a"\npredicate = "p"\nwhy = "w"\nsupply = "s"\n'
        'require = [{ field = "f", op = "==", value = 1 }]\n'
    )
    assert (own, config.policy().name) == ("default", "own")


def test_policy_error_names_the_file(tmp_path):
    (tmp_path / "p.toml").write_text("wrong = 1")
    with pytest.raises(WrongUsage, match=r"p\.toml: the policy: unknown key 'wrong'"):
        load_config(tmp_path).policy(tmp_path / "p.toml")


def test_trusted_keys_are_the_operators_and_the_folders(tmp_path):
    config = load_config(tmp_path)
    assert config.trusted_keys() == ()
    operator = new_key(config.operator_key)
    other = new_key(tmp_path / "elsewhere.pem")
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "auditor.pub").write_bytes(other.public.pem)
    assert config.trusted_keys() == (operator.public, other.public)


def test_home_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("STEELYARD_HOME", str(tmp_path))
    assert default_home() == tmp_path
