"""Runs one command and ends with whoever started it: `python -m steelyard.engines.launched_child COMMAND ...`.

Standard input is a pipe that nobody writes to. Its end means that the parent is gone, however it went; then the
whole process group is killed, workers of the engine included. This process leads that group.
"""

import os
import signal
import subprocess
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def _say(text: str) -> None:
    os.write(2, text.encode() + b"\n")


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
    except OSError as error:
        _say(f"cannot start {sys.argv[1]}: {error.strerror}")
    else:
        _say(f"ended with status {code}")
    os.killpg(0, signal.SIGKILL)  # workers it left behind


if __name__ == "__main__":
    main()
