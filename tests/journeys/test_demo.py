"""The promise of the README's first command, in a process of its own."""

import subprocess
import sys


def test_demo_tells_the_whole_story(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "steelyard", "demo"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    story = done.stdout
    in_order = [
        "would call posix.system('echo this model just ran a command on your machine')",
        "poisoned oms-sha256:",
        ": refused",
        "helpdesk oms-sha256:",
        ": allowed",
        "helpdesk-gguf oms-sha256:",
        "listening at http://127.0.0.1:",
        "I am a machine",
        "403",
        "scan-clean is unmet: the evidence was revoked",
        "Examine it again",
        "intact",
        "tampered",
        "Done in",
    ]
    place = 0
    for words in in_order:
        found = story.find(words, place)
        assert found >= 0, f"{words!r} is missing after {story[:place][-200:]!r}"
        place = found
    assert not list(tmp_path.iterdir())
