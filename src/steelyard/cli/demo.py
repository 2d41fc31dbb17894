"""`steelyard demo`: the main job on a demonstration model, offline, each step the command a user would type."""

import argparse
import contextlib
import io
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from steelyard.cli.talk import Talk
from steelyard.errors import SteelyardError, Unavailable

HELP = "The main job in a minute, offline: weigh a poisoned and a clean model, serve, refuse, verify."
ALIAS = "gpt-4o"
STOP_LIMIT_S = 60.0
QUESTIONS = (
    "How do I report a claim?",
    "Are you a human being?",
    "What is the capital of France?",
)
# A pickle that would run `echo` on loading, written by hand: nothing here can make or load pickles.
# PROTO 2, GLOBAL posix.system, BINUNICODE, TUPLE1, REDUCE, STOP.
_COMMAND = b"echo this model just ran a command on your machine"
POISON = b"\x80\x02cposix\nsystem\nX" + len(_COMMAND).to_bytes(4, "little") + _COMMAND + b"\x85R."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep", action="store_true", help="leave the gateway running at the end, until Ctrl-C"
    )


def run(args: argparse.Namespace, talk: Talk) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="steelyard-demo-") as folder:
        demo = _Demo(Path(folder), talk)
        demo.weigh()
        with demo.gateway() as server:
            demo.ask_and_revoke()
            demo.verify()
            talk.data(_next(time.monotonic() - began, talk), {"seconds": round(time.monotonic() - began, 1)})
            if args.keep:
                talk.say(f"The gateway runs at {demo.url} until Ctrl-C. API key: {demo.api_key}")
                with contextlib.suppress(KeyboardInterrupt):
                    server.wait()
    return 0


class _Demo:
    """The steps, sharing one temporary home."""

    def __init__(self, folder: Path, talk: Talk) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.talk = talk
        self.step = 0
        self.url = ""
        self.api_key = ""

    def weigh(self) -> None:
        """A poisoned copy is refused, the clean one is admitted and converted."""
        clean, poisoned = self.folder / "helpdesk", self.folder / "poisoned"
        with resources.as_file(resources.files("steelyard") / "data" / "helpdesk") as model:
            shutil.copytree(model, clean)
        shutil.copytree(clean, poisoned)
        (poisoned / "pytorch_model.bin").write_bytes(POISON)
        self.say("Make the key that signs evidence.")
        self.command("key new", expect=0)
        self.say(
            "A model from somewhere: one file in it runs a command when loaded. It is read, never loaded."
        )
        self.command(f"admit {poisoned}", expect=1)
        self.say("The same model without that file: a small demonstration model, trained for this project.")
        self.command(f"admit {clean}", expect=0)
        self.say("Convert it for the embedded engine: new bytes, new digest, lineage signed.")
        self.command("model convert helpdesk --name helpdesk-gguf", expect=0)
        self.command(f"model alias {ALIAS} helpdesk-gguf", expect=0)

    @contextlib.contextmanager
    def gateway(self) -> Iterator[subprocess.Popen[bytes]]:
        """`steelyard serve` in a process of its own, ready to answer; stopped at the end."""
        self.say(f"Serve it under the name your applications already use: {ALIAS}.")
        self.api_key = str(json.loads(self.quietly("key new --api demo --json"))["key"])
        log = self.folder / "serve.log"
        argv = [sys.executable, "-m", "steelyard", "serve", "--port", "0", "--home", str(self.home), "--json"]
        self.show("serve --port 0")
        with log.open("wb") as errors:
            server = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors)
            try:
                self.url = _ready_url(server, log)
                self.talk.data(f"  listening at {self.url}", {"url": self.url})
                yield server
            finally:
                server.terminate()
                server.wait(timeout=STOP_LIMIT_S)

    def ask_and_revoke(self) -> None:
        """The official client asks; one statement is revoked; the next call is refused; a new look restores it."""
        self.say("Three questions through the official openai client; only base_url has changed.")
        for question in QUESTIONS:
            self.ask(question)
        self.say("Revoke one statement: the scan of the model that is answering.")
        rows = json.loads(self.quietly("evidence show helpdesk-gguf --json"))
        digest = json.loads(self.quietly("model show helpdesk-gguf --json"))["digest"].split(":")[1]
        scan = next(
            row["id"]
            for row in rows
            if row["predicate_type"].endswith(":scan:v1") and row["subject"] == "helpdesk-gguf"
        )
        self.command(f"evidence revoke {scan[:16]} --reason demonstration", expect=0)
        self.ask(QUESTIONS[0])
        self.say("Examine it again: new evidence, and it may answer.")
        time.sleep(1.1)  # statements are dated to the second, and a tie with a revoked one refuses
        self.command(f"admit {digest[:16]}", expect=0)
        self.ask(QUESTIONS[0])

    def verify(self) -> None:
        """The ledger verifies; a copy with one changed byte does not."""
        time.sleep(0.5)  # the last answers get their checkpoint within this time
        self.say("Verify the ledger, as an outsider would: only its files and the public key.")
        key = self.home / "keys" / "ledger.vkey"
        self.command(f"ledger verify {self.home / 'ledger'} --key {key}", expect=0)
        self.say("Change one byte in a copy of it.")
        copy = self.folder / "tampered"
        shutil.copytree(self.home / "ledger", copy)
        bundle = max(
            (copy / "tile" / "entries").rglob("*"),
            key=lambda path: path.stat().st_size if path.is_file() else 0,
        )
        data = bytearray(bundle.read_bytes())
        data[len(data) // 2] ^= 1
        bundle.write_bytes(data)
        self.command(f"ledger verify {copy} --key {key}", expect=1)

    def ask(self, question: str) -> None:
        """One chat completion, or the refusal the client sees."""
        import openai

        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=0)
        try:
            raw = client.chat.completions.with_raw_response.create(
                model=ALIAS, messages=[{"role": "user", "content": question}], max_tokens=96, temperature=0
            )
        except openai.PermissionDeniedError as error:
            self.talk.data(
                f"  ? {question}\n  {self.talk.paint('403', 'bad')} {error.message}", {"refused": str(error)}
            )
            return
        answer = raw.parse().choices[0].message.content or ""
        digest = raw.headers["x-steelyard-model-digest"]
        self.talk.data(
            f"  ? {question}\n  > {answer}\n    {self.talk.paint(f'model {digest}', 'dim')}",
            {"question": question, "answer": answer, "model": digest},
        )

    def say(self, text: str) -> None:
        self.step += 1
        self.talk.data(
            "\n" + self.talk.paint(f"{self.step}. {text}", "bold"), {"step": self.step, "text": text}
        )

    def show(self, line: str) -> None:
        self.talk.data(self.talk.paint(f"  $ steelyard {line}", "dim"), {"command": f"steelyard {line}"})

    def command(self, line: str, *, expect: int) -> None:
        """Run a command as typed, show what it prints, and insist on its exit code."""
        self.show(line.replace(f"{self.folder}/", ""))
        code, out, err = self._main(line)
        for text in (out + (err if code else "")).splitlines():
            self.talk.data("  " + text.replace(f"{self.folder}/", ""), text)
        if code != expect:
            raise SteelyardError(
                f"the demonstration expected exit code {expect} of `steelyard {line}`, got {code}"
            )

    def quietly(self, line: str) -> str:
        """Run a command and return what it prints."""
        code, out, err = self._main(line)
        if code:
            raise SteelyardError(f"`steelyard {line}` ended with {code}: {err}")
        return out

    def _main(self, line: str) -> tuple[int, str, str]:
        from steelyard.cli.main import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*shlex.split(line), "--home", str(self.home)])
        return code, out.getvalue(), err.getvalue()


def _ready_url(server: subprocess.Popen[bytes], log: Path) -> str:
    # The server prints one line of JSON when it listens; anything else means that it could not.
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line.startswith(b'{"url"'):
        raise Unavailable(f"the gateway did not start: {log.read_text(errors='replace')[-2000:]}")
    return str(json.loads(line)["url"])


def _next(seconds: float, talk: Talk) -> str:
    return "\n".join(
        [
            "",
            talk.paint(f"Done in {seconds:.0f} s. Nothing left this machine.", "good"),
            "Next, with weights of your own:",
            "  steelyard key new",
            "  steelyard scan ./weights",
            "  steelyard admit ./weights",
            "  steelyard model convert NAME && steelyard model alias gpt-4o NAME-gguf",
            "  steelyard key new --api my-app && steelyard serve",
        ]
    )
