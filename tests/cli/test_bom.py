"""`steelyard bom`, typed as a user would."""

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def test_bill_of_an_admitted_model_is_valid_and_names_every_file(yard, helpdesk, tmp_path):
    assert yard("admit", helpdesk) == 0
    document = yard.json("bom", "helpdesk")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    assert {c["name"] for c in document["components"]} == {p.name for p in helpdesk.iterdir()}
    assert document["metadata"]["component"]["licenses"] == [{"expression": "Apache-2.0"}]
    out = tmp_path / "bom.json"
    assert yard("bom", "helpdesk", "--form", "spdx-3.0.1", "--out", out) == 0
    assert json.loads(out.read_text())["@context"].endswith("spdx-context.jsonld")


def test_half_a_release_is_wrong_usage(yard, helpdesk):
    assert yard("admit", helpdesk) == 0
    assert yard("bom", "helpdesk", "--form", "spdx-3.0.1", "--supplier", "Acme") == 2
    assert yard("bom", "helpdesk", "--supplier", "Acme") == 2
    release = [
        "--supplier",
        "Acme",
        "--released",
        "soon",
        "--release-version",
        "1",
        "--location",
        "https://x.example",
    ]
    assert yard("bom", "helpdesk", "--form", "spdx-3.0.1", *release) == 2
    release[3] = "2026-11-01T00:00:00Z"
    assert yard("bom", "helpdesk", "--form", "spdx-3.0.1", *release) == 0


def test_model_nobody_knows_is_wrong_usage(yard):
    assert yard("bom", "nobody") == 2
