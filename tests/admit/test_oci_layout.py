"""Over the air gap and back: the same digest, the same evidence; and layouts that are not what they say."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from steelyard.admit.bom import bill_of
from steelyard.admit.oci_export import export_layout
from steelyard.admit.oci_import import import_layout
from steelyard.blobs import Blobs
from steelyard.errors import Malformed, SteelyardError, WrongUsage
from steelyard.evidence import Statement, Subject, attest
from steelyard.keys import generate
from steelyard.manifest import manifest_of

SIGNER = generate("ed25519")


def nothing(count: int) -> None:
    """No progress bar."""


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "clerk"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"\0" * 3000)
    (folder / "sub" / "copy.safetensors").write_bytes(b"\0" * 3000)
    (folder / "README.md").write_text("a clerk")
    (folder / "__init__.py").write_bytes(b"")
    return folder


def evidence_on(model):
    files = [
        {"path": f.path, "format": "text" if f.path.endswith(".md") else "safetensors", "facts": {}}
        for f in model.files
    ]
    bodies = {
        "formats": {"files": files},
        "licence": {"expression": "MIT"},
        "manifest": {"files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in model.files]},
    }
    return [
        attest(
            Statement(
                (Subject(model.name, model.digest.hex),),
                f"urn:steelyard:{kind}:v1",
                {"issued_at": "2026-11-01T00:00:00Z", **body},
            ),
            SIGNER,
        )
        for kind, body in bodies.items()
    ]


def export(source: Path, out: Path):
    model = manifest_of(source)
    evidence = evidence_on(model)
    export_layout(bill_of(model, evidence), model, source, evidence, out, nothing)
    return model, evidence


@pytest.mark.parametrize("name", ["clerk.tar", "layout"])
def test_model_and_evidence_come_back_equal(tmp_path, source, name):
    model, evidence = export(source, tmp_path / name)
    there = import_layout(tmp_path / name, Blobs(tmp_path / "store"), nothing)
    assert there.model == model
    assert manifest_of(there.path).digest == model.digest
    assert {e.id for e in there.evidence} == {e.id for e in evidence}
    assert all(e.signatures for e in there.evidence)


def test_single_file_comes_back_with_its_digest_and_name(tmp_path):
    one = tmp_path / "weights.gguf"
    one.write_bytes(b"GGUF")
    model, _ = export(one, tmp_path / "one.tar")
    there = import_layout(tmp_path / "one.tar", Blobs(tmp_path / "store"), nothing)
    assert (there.model.digest, there.path.name) == (model.digest, "weights.gguf")


def test_layout_is_what_the_image_specification_says(tmp_path, source):
    export(source, tmp_path / "layout")
    root = tmp_path / "layout"
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    blobs = {p.name: p.read_bytes() for p in (root / "blobs" / "sha256").iterdir()}
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())

    def blob(descriptor):
        data = blobs[descriptor["digest"].removeprefix("sha256:")]
        assert len(data) == descriptor["size"]
        return data

    index = json.loads((root / "index.json").read_text())
    top = index["manifests"][0]
    manifest = json.loads(blob(top))
    assert manifest["artifactType"] == top["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    paths = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]
    }
    assert paths["README.md"] == "application/vnd.cncf.model.doc.v1.raw"
    assert paths["model.safetensors"] == "application/vnd.cncf.model.weight.v1.raw"
    for layer in manifest["layers"]:
        blob(layer)
    config = json.loads(blob(manifest["config"]))
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert config["descriptor"] == {"name": "clerk", "licenses": ["MIT"]}
    tag = top["digest"].replace(":", "-")
    [referrers] = [
        m
        for m in index["manifests"]
        if (m.get("annotations") or {}).get("org.opencontainers.image.ref.name") == tag
    ]
    listed = json.loads(blob(referrers))["manifests"]
    assert len(listed) == 3
    for entry in listed:
        referrer = json.loads(blob(entry))
        assert referrer["subject"]["digest"] == top["digest"]
        assert json.loads(blob(referrer["layers"][0]))["payloadType"] == "application/vnd.in-toto+json"


def test_same_model_and_evidence_give_the_same_archive(tmp_path, source):
    model = manifest_of(source)
    evidence = evidence_on(model)
    for name in ("a.tar", "b.tar"):
        export_layout(bill_of(model, evidence), model, source, evidence, tmp_path / name, nothing)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_source_that_changed_is_not_exported(tmp_path, source):
    model = manifest_of(source)
    evidence = evidence_on(model)
    (source / "README.md").write_text("a clark")
    for name in ("x.tar", "folder"):
        with pytest.raises(Malformed, match=r"README\.md"):
            export_layout(bill_of(model, evidence), model, source, evidence, tmp_path / name, nothing)
        assert not (tmp_path / name).exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clerk"]


def test_nothing_is_overwritten(tmp_path, source):
    (tmp_path / "x.tar").write_text("mine")
    with pytest.raises(WrongUsage, match="exists"):
        export(source, tmp_path / "x.tar")


def edit_blob(root: Path, digest: str, data: bytes) -> None:
    (root / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(data)


def swap_weights(root, index, manifest):
    edit_blob(root, manifest["layers"][1]["digest"], b"poison")


def swap_manifest(root, index, manifest):
    edit_blob(root, index["manifests"][0]["digest"], json.dumps({**manifest, "layers": []}).encode())


def drop_weights(root, index, manifest):
    (root / "blobs" / "sha256" / manifest["layers"][1]["digest"].removeprefix("sha256:")).unlink()


def swap_names(root, index, manifest):
    # The same contents in the same order, so the same digest: what was a text becomes code.
    for layer in manifest["layers"]:
        if layer["annotations"]["org.cncf.model.filepath"] == "README.md":
            layer["annotations"]["org.cncf.model.filepath"] = "README.py"
    rewrite(root, index, manifest, keep_referrers=True)


def rename_in_manifest(root, index, manifest):
    manifest["layers"][0]["annotations"]["org.cncf.model.filepath"] = "../../etc/passwd"
    rewrite(root, index, manifest)


def retype_layer(root, index, manifest):
    manifest["layers"][0]["mediaType"] = "application/vnd.cncf.model.weight.v1.tar+gzip"
    rewrite(root, index, manifest)


def leave_out_a_file(root, index, manifest):
    del manifest["layers"][0]
    rewrite(root, index, manifest)


def two_models(root, index, manifest):
    index["manifests"].append(index["manifests"][0])
    (root / "index.json").write_text(json.dumps(index))


def link_out(root, index, manifest):
    path = root / "blobs" / "sha256" / manifest["layers"][1]["digest"].removeprefix("sha256:")
    path.unlink()
    path.symlink_to("/etc/hostname")


def rewrite(root, index, manifest, *, keep_referrers=False):
    data = json.dumps(manifest).encode()
    digest = hashlib.sha256(data).hexdigest()
    (root / "blobs" / "sha256" / digest).write_bytes(data)
    for entry in index["manifests"][1:] if keep_referrers else ():
        body = json.loads((root / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")).read_text())
        if "subject" in body:
            body["subject"]["digest"] = f"sha256:{digest}"
            moved = json.dumps(body).encode()
            entry["digest"] = f"sha256:{hashlib.sha256(moved).hexdigest()}"
            (root / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")).write_bytes(moved)
    index["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(data)}
    (root / "index.json").write_text(json.dumps(index))


ATTACKS = {
    swap_weights: "tree/changed-while-reading",
    swap_manifest: "oci/changed",
    drop_weights: "oci/missing",
    rename_in_manifest: "tree/name-unsafe",
    swap_names: "oci/names",
    retype_layer: "oci/layer",
    leave_out_a_file: "oci/digest",
    two_models: "oci/layout",
    link_out: "oci/missing",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_layout_that_is_not_what_it_says_refuses_and_keeps_nothing(tmp_path, source, attack):
    model, _ = export(source, tmp_path / "layout")
    root = tmp_path / "layout"
    index = json.loads((root / "index.json").read_text())
    digest = index["manifests"][0]["digest"].removeprefix("sha256:")
    manifest = json.loads((root / "blobs" / "sha256" / digest).read_text())
    attack(root, index, manifest)
    blobs = Blobs(tmp_path / "store")
    with pytest.raises(Malformed) as caught:
        import_layout(root, blobs, nothing)
    assert caught.value.rule == ATTACKS[attack]
    assert blobs.kept(model) is None


def archive(tmp_path, *entries):
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as target:
        for entry, data in entries:
            target.addfile(entry, io.BytesIO(data))
    return path


def entry(name, size=0, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        entry("../../outside", 1),
        entry("/etc/passwd", 1),
        entry("blobs/sha256/" + "a" * 64, 0, tarfile.SYMTYPE, "/etc/passwd"),
        entry("blobs/sha256/" + "a" * 64, 0, tarfile.LNKTYPE, "index.json"),
        entry("index.json", 0, tarfile.FIFOTYPE),
        entry("extra.py", 1),
    ],
    ids=["traversal", "absolute", "symbolic link", "hard link", "pipe", "unknown name"],
)
def test_archive_with_anything_else_refuses(tmp_path, hostile):
    path = archive(tmp_path, (hostile, b"x"[: hostile.size]))
    with pytest.raises(Malformed) as caught:
        import_layout(path, Blobs(tmp_path / "store"), nothing)
    assert caught.value.rule == "oci/layout"


@pytest.mark.parametrize("data", [b"", b"no tar", b"\x1f\x8b" + bytes(100), bytes(10240)])
def test_what_is_no_archive_is_malformed(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(SteelyardError):
        import_layout(tmp_path / "x.tar", Blobs(tmp_path / "store"), nothing)
