"""`steelyard signature`: OpenSSF model signatures, written and verified with no network."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk

if TYPE_CHECKING:
    from steelyard.admit.signed_model import Signed, Trust

HELP = "OpenSSF model signatures: sign, verify (by key, certificate or Sigstore identity), offline."
DEFAULT_NAME = "model.sig"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    sign = verbs.add_parser("sign", help="sign every file of a model with an ECDSA key")
    sign.add_argument("path", type=Path, metavar="PATH", help="a model directory or file")
    sign.add_argument(
        "--key", type=Path, required=True, metavar="PEM", help="private key, P-256, P-384 or P-521"
    )
    sign.add_argument("--chain", type=Path, metavar="PEM", help="certificates, the signer's first")
    sign.add_argument("--out", type=Path, metavar="FILE", help=f"default: PATH/{DEFAULT_NAME}")
    verify = verbs.add_parser("verify", help="check a signature, and that it covers every file")
    verify.add_argument("path", type=Path, metavar="PATH", help="a model directory or file")
    verify.add_argument("--signature", type=Path, metavar="FILE", help=f"default: PATH/{DEFAULT_NAME}")
    by = verify.add_mutually_exclusive_group(required=True)
    by.add_argument("--key", type=Path, metavar="PEM", help="trust this public key")
    by.add_argument(
        "--roots", type=Path, metavar="PEM", help="trust what these certificate authorities vouch for"
    )
    by.add_argument(
        "--trusted-root", type=Path, metavar="JSON", help="trust an identity, by Sigstore's trusted root"
    )
    verify.add_argument("--identity", help="with --trusted-root: the signer's e-mail address or URI, exactly")
    verify.add_argument("--issuer", help="with --trusted-root: who vouched for the identity")
    verify.add_argument(
        "--unsigned",
        action="append",
        default=[],
        metavar="NAME",
        help="accept this file of the model without a signature (repeatable)",
    )
    verify.add_argument(
        "--record", action="store_true", help="keep the result as signed evidence on the model"
    )


def run(args: argparse.Namespace, talk: Talk) -> int:
    return {"sign": _sign, "verify": _verify}[args.verb](args, talk)


def _sign(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.admit.signed_model import sign_model
    from steelyard.cli.installation import passphrase
    from steelyard.errors import WrongUsage
    from steelyard.manifest import manifest_of

    out: Path = args.out or _beside(args.path)
    if out.exists():
        raise WrongUsage(f"{out} exists; remove it first, or name another with --out")
    chain = _read(args.chain) if args.chain else None
    with talk.bar(f"weighing {args.path.name}", _size(args.path)) as bar:
        model = manifest_of(args.path, progress=bar.advance)
    out.write_bytes(sign_model(model, _read(args.key), passphrase(), chain=chain))
    talk.data(
        f"{out}  signs {len(model.files)} files, {model.digest}",
        {"signature": str(out), "digest": str(model.digest), "files": len(model.files)},
    )
    return 0


def _verify(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.admit.signed_model import SIGNATURE_PREDICATE, verify_signature
    from steelyard.cli.installation import Installation, clock, subject_of
    from steelyard.manifest import manifest_of

    trust = _trust(args)
    signature: Path = args.signature or _beside(args.path)
    data = _read(signature)
    with talk.bar(f"weighing {args.path.name}", _size(args.path)) as bar:
        model = manifest_of(args.path, progress=bar.advance)
    signed = verify_signature(
        args.path,
        model,
        data,
        trust,
        own_path=_place(signature, args.path),
        unsigned=frozenset(args.unsigned),
    )
    predicate = signed.to_predicate(clock())
    if args.record:
        home = Installation.open(args.home)
        home.attest([subject_of(model)], SIGNATURE_PREDICATE, predicate)
        talk.say(f"recorded as evidence on {model.digest}")
    talk.data(_text(signed, talk), {"digest": str(model.digest), **predicate})
    return 0


def _text(signed: "Signed", talk: Talk) -> str:
    who = {
        "key": "the key {key}",
        "certificate": "{subject}, certified by {issuer}",
        "sigstore": "{identity}, vouched for by {issuer}, on {signed_at}",
    }[signed.method].format(**signed.signer)
    left_out = f"; accepted without a signature: {', '.join(signed.unsigned)}" if signed.unsigned else ""
    return f"{talk.paint('holds', 'good')}  {signed.files} file{'s' * (signed.files != 1)} signed by {who}{left_out}"


def _trust(args: argparse.Namespace) -> "Trust":
    from steelyard.admit.signed_model import ByCertificate, ByIdentity, ByKey
    from steelyard.errors import WrongUsage

    if args.trusted_root:
        if not args.identity or not args.issuer:
            raise WrongUsage("--trusted-root needs --identity and --issuer: anyone can have a certificate")
        return ByIdentity(_read(args.trusted_root), args.identity, args.issuer)
    if args.identity or args.issuer:
        raise WrongUsage("--identity and --issuer go with --trusted-root")
    return ByKey(_read(args.key)) if args.key else ByCertificate(_read(args.roots))


def _beside(path: Path) -> Path:
    return path / DEFAULT_NAME if path.is_dir() else path.with_name(path.name + ".sig")


def _place(signature: Path, root: Path) -> str | None:
    """Where the signature lies in the model, absent when it lies elsewhere."""
    try:
        return signature.resolve().relative_to(root.resolve()).as_posix() if root.is_dir() else None
    except ValueError:
        return None


def _size(path: Path) -> int:
    from steelyard.manifest import leaves_of

    return sum(leaf.size for leaf in leaves_of(path))


def _read(path: Path) -> bytes:
    from steelyard.errors import Unavailable, WrongUsage

    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise WrongUsage(f"{path}: no such file") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
