"""Bills of materials against the standards' own validators, and that each field comes from a statement."""

import json
from datetime import UTC, datetime
from io import BytesIO

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_python_model import v3_0_1

from steelyard.admit.bom import bill_of
from steelyard.admit.cyclonedx import cyclonedx
from steelyard.admit.spdx import Release, spdx
from steelyard.evidence import Statement, Subject, attest
from steelyard.keys import generate
from steelyard.model import File, Model

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MODEL = Model("clerk", (File("README.md", 5, "a" * 64), File("model.safetensors", 900, "b" * 64)))
SIGNER = generate("ed25519")
FACTS = [
    {
        "path": "README.md",
        "format": "text",
        "size": 5,
        "facts": {
            "front_matter": {
                "pipeline_tag": "text-generation",
                "datasets": ["letters"],
                "base_model": ["acme/base"],
                "base_model_relation": "finetune",
            }
        },
    },
    {
        "path": "config.json",
        "format": "hf-config",
        "size": 9,
        "facts": {
            "kind": "config.json",
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 256,
        },
    },
    {
        "path": "model.safetensors",
        "format": "safetensors",
        "size": 900,
        "facts": {"parameters": 440, "chat_template_sha256": "c" * 64},
    },
]


def statement(kind: str, issued: str = "2026-11-01T00:00:00Z", **body: object):
    predicate = {"issued_at": issued, **body}
    return attest(
        Statement((Subject("clerk", MODEL.digest.hex),), f"urn:steelyard:{kind}:v1", predicate), SIGNER
    )


EVIDENCE = [
    statement("formats", files=FACTS),
    statement("licence", "2026-10-01T00:00:00Z", expression="MIT"),
    statement("licence", "2026-11-02T00:00:00Z", expression="Apache-2.0"),
    statement("openness", missing=["training code"]),
    statement("scan", verdict="admit"),
    statement("lineage", operation="quantise", source={"name": "clerk-f16", "digest": {"sha256": "d" * 64}}),
    statement("decision", allowed=True),
]


@pytest.mark.parametrize(
    ("version", "schema"), [("1.6", SchemaVersion.V1_6), ("1.7", SchemaVersion.V1_7)], ids=["1.6", "1.7"]
)
@pytest.mark.parametrize("evidence", [EVIDENCE, EVIDENCE[:1], EVIDENCE[4:5]], ids=["all", "formats", "scan"])
def test_cyclonedx_is_valid_by_their_strict_validator(version, schema, evidence):
    document = cyclonedx(bill_of(MODEL, evidence), NOW, version)
    assert JsonStrictValidator(schema).validate_str(json.dumps(document)) is None
    broken = {**document, "serialNumber": "urn:uuid:none"}
    assert JsonStrictValidator(schema).validate_str(json.dumps(broken)) is not None


def test_cyclonedx_fields_come_from_the_statements():
    component = cyclonedx(bill_of(MODEL, EVIDENCE), NOW)["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": MODEL.digest.hex}]
    assert component["licenses"] == [{"expression": "Apache-2.0"}]  # the newest statement
    assert component["modelCard"]["modelParameters"] == {
        "task": "text-generation",
        "architectureFamily": "llama",
        "modelArchitecture": "LlamaForCausalLM",
        "datasets": [{"type": "dataset", "name": "letters"}],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    assert [a["name"] for a in component["pedigree"]["ancestors"]] == ["clerk-f16", "acme/base"]
    properties = {p["name"]: p["value"] for p in component["properties"]}
    assert properties["steelyard:chat-template:0:sha256"] == "c" * 64
    assert properties["steelyard:scan:verdict"] == "admit"
    ids = {item.id.hex for item in EVIDENCE[:6]} - {EVIDENCE[1].id.hex}
    assert {r["url"].removeprefix("urn:sha256:") for r in component["externalReferences"]} == ids


def test_nothing_is_said_that_no_statement_says():
    component = cyclonedx(bill_of(MODEL, EVIDENCE[4:5]), NOW)["metadata"]["component"]
    assert component["modelCard"]["modelParameters"] == {}
    assert "licenses" not in component
    assert "pedigree" not in component


def test_same_bill_at_the_same_time_is_the_same_document():
    assert cyclonedx(bill_of(MODEL, EVIDENCE), NOW) == cyclonedx(bill_of(MODEL, reversed(EVIDENCE)), NOW)


def graph_of(document):
    objects = v3_0_1.SHACLObjectSet()
    v3_0_1.JSONLDDeserializer().read(BytesIO(json.dumps(document).encode()), objects)
    return objects


def test_spdx_is_read_by_their_model_with_the_ai_profile():
    release = Release("Acme", NOW, "1.0", "https://models.example/clerk")
    objects = graph_of(spdx(bill_of(MODEL, EVIDENCE), NOW, release))
    package = next(o for o in objects.foreach_type("ai_AIPackage") if o.name == "clerk")
    assert package.ai_typeOfModel == ["LlamaForCausalLM", "llama"]
    assert package.software_downloadLocation == "https://models.example/clerk"
    assert package.suppliedBy.name == "Acme"
    assert [h.hashValue for h in package.verifiedUsing] == [MODEL.digest.hex]
    document = next(iter(objects.foreach_type("SpdxDocument")))
    assert "https://spdx.org/rdf/3.0.1/terms/Core/ProfileIdentifierType/ai" in document.profileConformance
    assert not objects.missing_ids
    kinds = {r.relationshipType.rpartition("/")[2] for r in objects.foreach_type("Relationship")}
    assert kinds == {"contains", "hasDeclaredLicense", "ancestorOf"}


def test_spdx_without_a_release_does_not_claim_the_ai_profile():
    objects = graph_of(spdx(bill_of(MODEL, EVIDENCE), NOW))
    document = next(iter(objects.foreach_type("SpdxDocument")))
    assert not any(profile.endswith("/ai") for profile in document.profileConformance)


def test_unknown_version_is_a_misuse():
    with pytest.raises(ValueError, match=r"1\.5"):
        cyclonedx(bill_of(MODEL, EVIDENCE), NOW, "1.5")
