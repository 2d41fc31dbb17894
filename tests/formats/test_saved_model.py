"""What TensorFlow itself wrote is clean: SavedModels of both generations, checkpoints, frozen graphs."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats import saved_model, tf_checkpoint
from steelyard.formats.base import BytesSource, Reference
from steelyard.formats.tf_operators import OPERATORS, PYTHON, SAVER, VOCABULARY

DATA = Path(__file__).parent.parent / "data" / "tf"
GRAPHS = sorted(
    path.relative_to(DATA).as_posix() for path in DATA.rglob("*") if path.suffix in {".pb", ".meta"}
)
INDEXES = sorted(path.relative_to(DATA).as_posix() for path in DATA.rglob("*.index"))
NOTES = sorted(path.relative_to(DATA).as_posix() for path in DATA.rglob("checkpoint") if path.is_file())


def load(name: str) -> bytes:
    return (DATA / name).read_bytes()


def flagged(form, data: bytes, name: str) -> bool:
    try:
        return not form.sniff(data[:4096], name) or bool(form.read(BytesSource(data), name).findings)
    except Malformed as error:
        return error.rule in form.rules


@pytest.mark.parametrize("name", GRAPHS + NOTES)
def test_what_tensorflow_wrote_is_clean(name):
    assert saved_model.FORMAT.sniff(load(name)[:4096], name)
    assert saved_model.FORMAT.read(BytesSource(load(name)), name).findings == ()


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_is_clean_and_names_its_data(name):
    assert tf_checkpoint.FORMAT.sniff(load(name)[:4096], name)
    report = tf_checkpoint.FORMAT.read(BytesSource(load(name)), name)
    assert report.findings == ()
    (reference,) = report.references
    assert (DATA / name).with_name(reference.path).stat().st_size == reference.end


def test_the_kind_is_told_from_the_content():
    kinds = {name: saved_model.FORMAT.read(BytesSource(load(name)), name).facts["kind"] for name in GRAPHS}
    assert kinds["dense/saved_model.pb"] == "SavedModel"
    assert kinds["dense/fingerprint.pb"] == "FingerprintDef"
    assert kinds["frozen.pb"] == "GraphDef"
    assert kinds["checkpoint/model.ckpt.meta"] == "MetaGraphDef"


def test_the_facts_are_those_of_the_model():
    report = saved_model.FORMAT.read(BytesSource(load("dense/saved_model.pb")), "saved_model.pb")
    assert report.facts["tags"] == ["serve"]
    assert report.facts["tensorflow_version"] == "2.21.0"
    assert report.facts["operators"]["MatMul"] == 1
    index = tf_checkpoint.FORMAT.read(BytesSource(load("dense/variables/variables.index")), "variables.index")
    assert index.facts["parameters"] == 4 * 3 + 1  # and the object graph, one text


def test_an_asset_becomes_a_reference():
    report = saved_model.FORMAT.read(BytesSource(load("vocabulary/saved_model.pb")), "saved_model.pb")
    assert report.references == (Reference("assets/vocab.txt"),)


@given(st.sampled_from(GRAPHS + INDEXES), st.integers(1, 3000))
@settings(max_examples=60, deadline=None)
def test_a_shortened_file_is_flagged(name, missing):
    form = tf_checkpoint.FORMAT if name.endswith(".index") else saved_model.FORMAT
    data = load(name)
    if "fingerprint" not in name:  # its last fields are optional
        assert flagged(form, data[: max(1, len(data) - missing)], name) or name == "frozen.pb"


@given(st.sampled_from(GRAPHS + INDEXES), st.data())
@settings(max_examples=100, deadline=None)
def test_a_flipped_bit_is_read_or_refused_and_never_crashes(name, data):
    content = bytearray(load(name))
    at = data.draw(st.integers(0, len(content) * 8 - 1))
    content[at // 8] ^= 1 << at % 8
    form = tf_checkpoint.FORMAT if name.endswith(".index") else saved_model.FORMAT
    flagged(form, bytes(content), name)


def test_no_listed_operator_touches_files_processes_or_python():
    outside = {"ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "EagerPyFunc", "PyFuncStateless", "LoadDataset",
               "SaveDatasetV2", "DebugIdentityV3", "DumpTensor", "ImmutableConst", "TextLineDataset", "DecodeProtoV2",
               "EncodeProto", "RpcCall", "SqlDataset", "WriteGraphSummary", "FileSystemSetConfiguration",
               "GenerateVocabRemapping", "LoadAndRemapMatrix", "RemoteFusedGraphExecute", "XlaCallModule",
               "CreateSummaryFileWriter", "DatasetToTFRecord", "TFRecordReaderV2", "WholeFileReaderV2",
               "Send", "Recv"}  # fmt: skip
    assert not OPERATORS & (outside | SAVER | VOCABULARY | PYTHON)
    assert len(OPERATORS) > 900
