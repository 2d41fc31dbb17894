"""Evidence: laws of the envelope; securesystemslib and in-toto's own package as the other side."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement as InTotoStatement
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from steelyard.errors import Malformed, Untrusted
from steelyard.evidence import (
    PAYLOAD_TYPE,
    Evidence,
    PublicKey,
    Statement,
    Subject,
    attest,
    pae,
    verify,
)
from steelyard.keys import generate

SIGNERS = {"ed25519": generate("ed25519"), "p256": generate("p256")}
STATEMENT = Statement((Subject("model", "ab" * 32),), "urn:steelyard:scan:v1", {"verdict": "admit"})
SIGNED = {name: attest(STATEMENT, signer).to_json() for name, signer in SIGNERS.items()}
PREDICATES = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    max_size=4,
)

signer_of_each_algorithm = pytest.mark.parametrize("signer", SIGNERS.values(), ids=SIGNERS)


@given(st.sampled_from(list(SIGNERS.values())), PREDICATES)
def test_what_is_signed_verifies_and_survives_the_file(signer, predicate):
    evidence = attest(Statement(STATEMENT.subjects, "urn:x", predicate), signer)
    read = Evidence.parse(evidence.to_json())
    assert read == evidence
    assert read.statement.predicate == predicate
    assert verify(read, [signer.public]) == {signer.public.keyid}


@given(st.sampled_from(list(SIGNERS)), st.sampled_from(["payload", "sig"]), st.integers(0, 1 << 16))
def test_any_flipped_bit_of_payload_or_signature_refuses(name, field, bit):
    signer, envelope = SIGNERS[name], json.loads(SIGNED[name])
    holder = envelope if field == "payload" else envelope["signatures"][0]
    raw = bytearray(base64.b64decode(holder[field]))
    bit %= len(raw) * 8
    raw[bit // 8] ^= 1 << bit % 8
    holder[field] = base64.b64encode(raw).decode()
    with pytest.raises((Untrusted, Malformed)):
        verify(Evidence.parse(json.dumps(envelope).encode()), [signer.public])


def test_another_payload_type_breaks_the_signature():
    evidence = attest(STATEMENT, SIGNERS["ed25519"])
    assert not SIGNERS["ed25519"].public.verify(
        evidence.signatures[0].sig, pae("text/plain", evidence.payload)
    )


def test_pae_is_the_example_of_the_protocol():
    # secure-systems-lab/dsse, protocol.md, "Test Vectors"
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_unknown_fields_survive():
    envelope = json.loads(attest(STATEMENT, SIGNERS["ed25519"]).to_json())
    envelope["later"] = {"a": [1, 2]}
    envelope["signatures"][0]["cert"] = "chain"
    again = json.loads(Evidence.parse(json.dumps(envelope).encode()).to_json())
    assert again["later"] == {"a": [1, 2]}
    assert again["signatures"][0]["cert"] == "chain"


def test_several_signatures_name_every_trusted_signer():
    evidence = attest(STATEMENT, *SIGNERS.values())
    keys = [signer.public for signer in SIGNERS.values()]
    assert verify(evidence, keys) == {key.keyid for key in keys}
    assert verify(evidence, keys[:1]) == {keys[0].keyid}


def test_keyid_is_a_hint_only():
    signer = SIGNERS["ed25519"]
    envelope = json.loads(attest(STATEMENT, signer).to_json())
    envelope["signatures"][0]["keyid"] = "somebody else"
    assert verify(Evidence.parse(json.dumps(envelope).encode()), [signer.public]) == {signer.public.keyid}


def test_stolen_keyid_does_not_help():
    envelope = json.loads(attest(STATEMENT, generate("ed25519")).to_json())
    envelope["signatures"][0]["keyid"] = SIGNERS["ed25519"].public.keyid
    with pytest.raises(Untrusted, match="no signature by any of 1 trusted keys"):
        verify(Evidence.parse(json.dumps(envelope).encode()), [SIGNERS["ed25519"].public])


def test_nobody_trusted_is_untrusted():
    with pytest.raises(Untrusted):
        verify(attest(STATEMENT, SIGNERS["p256"]), [])


@signer_of_each_algorithm
def test_securesystemslib_verifies_ours(signer):
    envelope = Envelope.from_dict(json.loads(attest(STATEMENT, signer).to_json()) | {})
    scheme = "ed25519" if signer is SIGNERS["ed25519"] else "ecdsa-sha2-nistp256"
    key = SSlibKey(
        signer.public.keyid,
        "ed25519" if scheme == "ed25519" else "ecdsa",
        scheme,
        {"public": raw_public(signer) if scheme == "ed25519" else signer.public.pem.decode()},
    )
    assert set(envelope.verify([key], threshold=1)) == {signer.public.keyid}


@signer_of_each_algorithm
def test_ours_verifies_securesystemslibs(signer):
    theirs = CryptoSigner(signer.key)
    envelope = Envelope(STATEMENT.to_bytes(), PAYLOAD_TYPE, {})
    envelope.sign(theirs)
    evidence = Evidence.parse(json.dumps(envelope.to_dict()).encode())
    assert verify(evidence, [signer.public]) == {signer.public.keyid}


def test_in_toto_reads_our_statement():
    theirs = InTotoStatement.copy_from_pb(pb_of(STATEMENT.to_bytes()))
    theirs.validate()
    assert theirs.pb.subject[0].digest["sha256"] == "ab" * 32


def test_ours_reads_an_in_toto_statement():
    theirs = InTotoStatement(
        [ResourceDescriptor(name="model", digest={"sha256": "cd" * 32}).pb], "https://example.com/p", {"k": 1}
    )
    evidence = sign_raw(json.dumps(dict_of(theirs)).encode())
    assert evidence.statement.subjects == (Subject("model", "cd" * 32),)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda e: e.pop("payload"), "evidence/envelope"),
        (lambda e: e.update(signatures=[]), "evidence/envelope"),
        (lambda e: e.update(signatures=[{"keyid": "x"}]), "evidence/envelope"),
        (lambda e: e.update(signatures=["x"]), "evidence/envelope"),
        (lambda e: e.update(payload="***"), "evidence/base64"),
        (lambda e: e.update(payloadType="text/plain"), "evidence/payload-type"),
        (lambda e: e.update(payload=base64.b64encode(b"[]").decode()), "evidence/statement"),
        (lambda e: e.update(payload=base64.b64encode(b'{"a":1,"a":2}').decode()), "evidence/statement"),
        (lambda e: e.update(payload=base64.b64encode(b"[" * 100_000).decode()), "evidence/statement"),
        (lambda e: e.update(payload=base64.b64encode(b'{"_type":"v0.1"}').decode()), "evidence/statement"),
    ],
)
def test_broken_envelope_is_malformed(change, rule):
    envelope = json.loads(attest(STATEMENT, SIGNERS["ed25519"]).to_json())
    change(envelope)
    with pytest.raises(Malformed) as caught:
        Evidence.parse(json.dumps(envelope).encode())
    assert caught.value.rule == rule


def test_repeated_key_is_malformed():
    # Two parsers would read two statements out of one signed payload.
    payload = STATEMENT.to_bytes().replace(b'"verdict":"admit"', b'"verdict":"reject","verdict":"admit"')
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": "", "sig": ""}],
    }
    with pytest.raises(Malformed, match="repeats a key"):
        Evidence.parse(json.dumps(envelope).encode())


@given(st.binary(max_size=200))
def test_random_bytes_are_malformed(data):
    with pytest.raises(Malformed):
        Evidence.parse(data)


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_broken_public_key_is_malformed(pem):
    with pytest.raises(Malformed):
        PublicKey(pem)


def raw_public(signer):
    return signer.key.public_key().public_bytes_raw().hex()


def sign_raw(payload):
    signer = SIGNERS["ed25519"]
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": "", "sig": base64.b64encode(signer.sign(pae(PAYLOAD_TYPE, payload))).decode()}
        ],
    }
    evidence = Evidence.parse(json.dumps(envelope).encode())
    verify(evidence, [signer.public])
    return evidence


def pb_of(data):
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2

    return json_format.Parse(data, statement_pb2.Statement())


def dict_of(statement):
    from google.protobuf import json_format

    return json_format.MessageToDict(statement.pb)
