"""Entry point: find the command, import only its module, map every error to an exit code.

Exit codes: 0 yes, 1 a decided no, 2 wrong usage, 3 could not decide.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from types import ModuleType

from steelyard import __version__
from steelyard.cli.talk import Talk
from steelyard.errors import Malformed, Refused, SteelyardError

COMMANDS = {
    "scan": "examine a file or directory: no store, key or policy",
    "admit": "scan, sign the evidence, decide by policy",
    "serve": "answer OpenAI clients from admitted models only",
    "egress-test": "try every way out of a serving process and show each refused",
    "demo": "the main job in a minute, offline, with one refusal",
    "model": "ls, show, convert, alias, export, import, drop, gc",
    "evidence": "show, verify, export, revoke",
    "policy": "check, explain",
    "signature": "sign, verify OpenSSF model signatures",
    "openness": "how open a release is, or whether a service has weights at all",
    "bom": "a model's bill of materials: CycloneDX, SPDX",
    "advisories": "add, check, show: known vulnerabilities from an OSV dump",
    "environment": "check what is installed here against what its packages recorded",
    "ledger": "verify, show, prove",
    "node": "tell a gateway which model an engine on this host has loaded",
    "privacy": "scan, dictionary: personal data in a text, the firm's own list",
    "key": "new, ls, show, rotate, revoke, drop: signing keys and API keys",
    "team": "new, ls, show, set, drop: keys that share models, limits and a budget",
}
_EPILOG = "\n".join(
    [
        "commands:",
        *(f"  {name:<11} {text}" for name, text in COMMANDS.items()),
        "",
        "steelyard COMMAND --help explains one. Exit codes: 0 yes, 1 a decided no, 2 wrong usage, 3 could not decide.",
    ]
)
COMMON = (
    "Every command also takes --json (print the result as JSON), --quiet (no talk on stderr) "
    "and --home DIR (state folder; default: $STEELYARD_HOME or ~/.steelyard)."
)


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    top = argparse.ArgumentParser(
        prog="steelyard",
        description="Replace a closed AI service with open weights you run yourself, and prove the replacement.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="steelyard COMMAND ...",
    )
    top.add_argument("--version", action="version", version=f"steelyard {__version__}")
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    name = top.parse_args(argv[:1] or ["--help"]).command
    # The options of every command may stand anywhere, before or after a noun's verb.
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--json", action="store_true")
    common.add_argument("--quiet", action="store_true")
    common.add_argument("--home", type=Path)
    shared, rest = common.parse_known_args(argv[1:])
    module = module_of(name)
    parser = argparse.ArgumentParser(
        prog=f"steelyard {name}", description=module.HELP, epilog=COMMON, allow_abbrev=False
    )
    module.add_arguments(parser)
    args = parser.parse_args(rest, namespace=shared)
    return _guarded(module, args, Talk(json=args.json, quiet=args.quiet))


def _guarded(module: ModuleType, args: argparse.Namespace, talk: Talk) -> int:
    """The one place of the command line that catches everything: log, and fail closed."""
    try:
        code: int = module.run(args, talk)
        sys.stdout.flush()
    except SteelyardError as error:
        _report(error, talk)
        return error.exit_code
    except KeyboardInterrupt:
        talk.complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our stdout went away (`| head`): there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 3
    except Exception as error:
        if "STEELYARD_DEBUG" in os.environ:
            raise
        talk.complain(f"error: {type(error).__name__}: {error}")
        talk.complain(
            "This is a defect or a full disk; set STEELYARD_DEBUG=1 for the trace. Nothing was decided."
        )
        return 3
    return code


def _report(error: SteelyardError, talk: Talk) -> None:
    if talk.json:
        detail = {"type": type(error).__name__, "message": error.message, "exit_code": error.exit_code}
        if isinstance(error, Malformed):
            detail |= {"rule": error.rule, "offset": error.offset}
        print(json.dumps({"error": detail}, indent=2, ensure_ascii=False))
    talk.complain(f"error: {error.message}")
    if isinstance(error, Refused):
        for rule in error.rules:
            talk.complain(f"  {rule}")


def module_of(name: str) -> ModuleType:
    """The module of one command, imported alone: `--help` and `--version` load none of them."""
    module: ModuleType
    match name:
        case "scan":
            from steelyard.cli import scan as module
        case "admit":
            from steelyard.cli import admit as module
        case "serve":
            from steelyard.cli import serve as module
        case "egress-test":
            from steelyard.cli import egress as module
        case "demo":
            from steelyard.cli import demo as module
        case _:
            module = _noun(name)
    return module


def _noun(name: str) -> ModuleType:
    module: ModuleType
    match name:
        case "model":
            from steelyard.cli import model as module
        case "evidence":
            from steelyard.cli import evidence as module
        case "policy":
            from steelyard.cli import policy as module
        case "ledger":
            from steelyard.cli import ledger as module
        case "signature":
            from steelyard.cli import signature as module
        case "openness":
            from steelyard.cli import openness as module
        case "bom":
            from steelyard.cli import bom as module
        case "advisories":
            from steelyard.cli import advisories as module
        case "environment":
            from steelyard.cli import environment as module
        case "node":
            from steelyard.cli import node as module
        case "privacy":
            from steelyard.cli import privacy as module
        case "team":
            from steelyard.cli import team as module
        case _:
            from steelyard.cli import key as module
    return module
