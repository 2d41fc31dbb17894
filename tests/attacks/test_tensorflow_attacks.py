"""Hostile TensorFlow files: each is made here field by field, and refused by the rule it breaks."""

from struct import pack

import pytest

from steelyard.errors import Malformed
from steelyard.formats import saved_model, tf_checkpoint
from steelyard.formats.base import BytesSource, Report

DT_FLOAT, DT_STRING = 1, 7


def varint(value: int) -> bytes:
    out = bytearray()
    value %= 1 << 64
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(key: int, value: int) -> bytes:
    return varint(key << 3) + varint(value)


def field(key: int, payload: bytes | str) -> bytes:
    payload = payload.encode() if isinstance(payload, str) else payload
    return varint(key << 3 | 2) + varint(len(payload)) + payload


def attribute(key: str, value: bytes) -> bytes:
    return field(5, field(1, key) + field(2, value))


TEXT = attribute("dtype", number(6, DT_STRING)) + attribute("T", number(6, DT_STRING))


def node(name: str, operator: str, *inputs: str, more: bytes = b"") -> bytes:
    return field(1, name) + field(2, operator) + b"".join(field(3, one) for one in inputs) + more


def text(name: str, value: str) -> bytes:
    tensor = number(1, DT_STRING) + field(2, b"") + field(8, value)
    return node(name, "Const", more=attribute("value", field(8, tensor)) + TEXT)


def call(name: str, function: str, *inputs: str, operator: str = "StatefulPartitionedCall") -> bytes:
    return node(name, operator, *inputs, more=attribute("f", field(10, field(1, function))))


def function(name: str, *nodes: bytes, arguments: tuple[str, ...] = ()) -> bytes:
    signature = field(1, name) + b"".join(field(2, field(1, one)) for one in arguments)
    return field(1, signature) + b"".join(field(3, one) for one in nodes)


def graph(*nodes: bytes, functions: tuple[bytes, ...] = ()) -> bytes:
    library = field(2, b"".join(field(1, one) for one in functions)) if functions else b""
    return b"".join(field(1, one) for one in nodes) + library


def meta(body: bytes, more: bytes = b"") -> bytes:
    return number(1, 1) + field(2, field(1, field(4, "serve")) + field(2, body) + more)


def examine(data: bytes, path: str = "saved_model.pb") -> Report:
    assert saved_model.FORMAT.sniff(data[:4096], path)
    return saved_model.FORMAT.read(BytesSource(data), path)


def rules_of(data: bytes, path: str = "saved_model.pb") -> set[str]:
    try:
        return {finding.rule for finding in examine(data, path).findings}
    except Malformed as error:
        return {error.rule}


def refused(data: bytes, rule: str, path: str = "saved_model.pb") -> None:
    assert f"tensorflow/{rule}" in saved_model.FORMAT.rules
    assert rules_of(data, path) == {f"tensorflow/{rule}"}


PLACEHOLDER = node("saver_filename", "Placeholder", more=TEXT)
SAVE = function(
    "__inference__traced_save_1",
    text("part", "_temp/part"),
    node("join", "StringJoin", "file_prefix", "part:output:0"),
    node("shard", "ShardedFilename", "join:output:0"),
    node("save", "SaveV2", "shard:filename:0"),
    node("parts", "Pack", "shard:filename:0", more=TEXT),
    node("merge", "MergeV2Checkpoints", "parts:output:0", "file_prefix"),
    arguments=("file_prefix",),
)
RESTORE = function(
    "__inference__traced_restore_2", node("r", "RestoreV2", "file_prefix"), arguments=("file_prefix",)
)


def saver(*nodes: bytes, functions: tuple[bytes, ...] = (SAVE, RESTORE)) -> bytes:
    return graph(PLACEHOLDER, *nodes, functions=functions)


HONEST = saver(
    call("s", "__inference__traced_save_1", "saver_filename"),
    call("r", "__inference__traced_restore_2", "saver_filename"),
)


def test_the_model_the_attacks_start_from_is_clean():
    assert rules_of(meta(HONEST)) == set()


@pytest.mark.parametrize("operator", [
    "ReadFile", "WriteFile", "MatchingFiles", "LoadLibrary", "ShellExecute", "DebugIdentityV3", "ImmutableConst",
    "TextLineReaderV2", "TFRecordDataset", "RpcClient", "SaveDatasetV2", "DecodeProtoV2", "CreateSummaryFileWriter",
    "XlaCallModule", "readfile", "Read_File", "",
])  # fmt: skip
def test_operator_that_reaches_outside_or_is_unknown(operator):
    refused(meta(graph(node("n", operator))), "operator")
    refused(
        meta(graph(node("n", "NoOp"), functions=(function("__inference_f", node("n", operator)),))),
        "operator",
    )
    refused(graph(node("n", "NoOp"), node("n2", operator)), "operator", "frozen.pb")


@pytest.mark.parametrize("operator", ["PyFunc", "EagerPyFunc", "PyFuncStateless"])
def test_operator_that_calls_python(operator):
    refused(meta(graph(node("n", operator))), "python-operator")


def test_function_that_takes_the_name_of_an_operator_that_reads_files():
    evil = (function("ReadFile", node("n", "NoOp")),)
    refused(meta(graph(node("n", "ReadFile"), functions=evil)), "operator")


def test_operator_named_as_a_function():
    refused(meta(graph(call("c", "ReadFile", "x", operator="SymbolicGradient"))), "operator")


def test_operator_behind_many_equal_nodes():
    """The reader takes a fast way for nodes it has seen."""
    refused(meta(graph(*[node("n", "Relu", "x")] * 20, node("n", "ReadFile", "x"))), "operator")
    refused(meta(graph(*[node("n", "Relu", "x")] * 20, node("n", "Relu") + field(2, "ReadFile"))), "field")


def test_saver_with_a_path_of_its_own():
    for operator in ("SaveV2", "RestoreV2", "MergeV2Checkpoints", "Save", "Restore"):
        refused(meta(graph(text("p", "/etc/cron.d/x"), node("n", operator, "p:0", "p:0"))), "saver-path")
        refused(meta(graph(text("p", "../x"), node("n", operator, "p:0", "p:0"))), "saver-path")
        refused(meta(graph(node("n", operator))), "saver-path")


def test_saver_of_a_function_with_a_path_of_its_own():
    evil = function("__inference_f", text("p", "model"), node("s", "SaveV2", "p:output:0"))
    refused(meta(graph(PLACEHOLDER, functions=(evil,))), "saver-path")


def test_saver_that_joins_a_traversal_to_the_callers_path():
    for suffix in ("/../../x", "..", "/etc/x", "a/b/part"):
        evil = function("__inference_f", text("p", suffix), node("j", "StringJoin", "a", "p:output:0"),
                        node("s", "SaveV2", "j:output:0"), arguments=("a",))  # fmt: skip
        refused(meta(graph(PLACEHOLDER, functions=(evil,))), "saver-path")


def test_saver_that_puts_its_own_folder_before_the_callers_path():
    evil = function("__inference_f", text("p", "/etc/"), node("j", "StringJoin", "p:output:0", "a"),
                    node("s", "SaveV2", "j:output:0"), arguments=("a",))  # fmt: skip
    refused(meta(graph(PLACEHOLDER, functions=(evil,))), "saver-path")


def test_merge_whose_destination_is_not_the_callers():
    evil = function(
        "__inference_f",
        text("p", "/etc/x"),
        node("m", "MergeV2Checkpoints", "a", "p:output:0"),
        arguments=("a",),
    )
    refused(meta(graph(PLACEHOLDER, functions=(evil,))), "saver-path")
    two = function("__inference_f", node("m", "MergeV2Checkpoints", "a", "b"), arguments=("a", "b"))
    refused(meta(graph(PLACEHOLDER, functions=(two,))), "saver-path")


def test_saver_behind_an_operator_that_makes_text():
    evil = function(
        "__inference_f", node("d", "DecodeBase64", "a"), node("s", "SaveV2", "d:output:0"), arguments=("a",)
    )
    refused(meta(graph(PLACEHOLDER, functions=(evil,))), "saver-path")


def test_path_that_runs_in_a_circle():
    first, second = (node(a, "Identity", f"{b}:output:0", more=TEXT) for a, b in ("ij", "ji"))
    evil = function("__inference_f", first, second,
                    node("s", "SaveV2", "i:output:0"))  # fmt: skip
    refused(meta(graph(PLACEHOLDER, functions=(evil,))), "saver-path")


def test_saver_called_with_a_constant():
    refused(meta(saver(text("p", "/etc/x"), call("s", "__inference__traced_save_1", "p:0"))), "saver-call")


def test_saver_called_by_serving():
    serving = function("__inference_serve", call("s", "__inference__traced_save_1", "x"), arguments=("x",))
    refused(meta(saver(functions=(SAVE, serving))), "saver-call")


def test_saver_called_by_a_branch_or_under_its_own_name():
    branch = node("b", "If", "saver_filename", "saver_filename",
                  more=attribute("then_branch", field(10, field(1, "__inference__traced_save_1"))))  # fmt: skip
    refused(meta(saver(branch)), "saver-call")
    refused(meta(saver(node("b", "__inference__traced_save_1", "saver_filename"))), "saver-call")
    listed = attribute("branches", field(1, field(9, field(1, "__inference__traced_save_1"))))
    refused(meta(saver(node("b", "Case", "saver_filename", more=listed))), "saver-call")


def test_saver_as_a_function_of_the_loaded_object():
    concrete = field(7, field(2, field(1, "__inference__traced_save_1") + field(2, b"")))
    refused(meta(HONEST, concrete), "saver-call")
    bare = field(7, field(1, field(8, field(1, "__inference__traced_save_1"))))
    refused(meta(HONEST, bare), "saver-call")


def test_saver_as_a_gradient():
    library = field(2, field(1, SAVE) + field(2, field(1, "f") + field(2, "__inference__traced_save_1")))
    refused(meta(graph(PLACEHOLDER) + library), "saver-call")


def test_vocabulary_that_is_no_asset():
    evil = (text("p", "/etc/passwd"), node("t", "InitializeTableFromTextFileV2", "h", "p"))
    refused(meta(graph(*evil)), "vocabulary-path")
    asset = field(6, field(1, field(1, "p:0")) + field(2, "vocab.txt"))
    refused(meta(graph(*evil), asset.replace(b"p:0", b"q:0")), "vocabulary-path")
    assert rules_of(meta(graph(*evil), asset)) == set()  # the loader puts the asset's path there


def listed_as_version_one_does(asset: bytes) -> bytes:
    packed = field(1, "type.googleapis.com/tensorflow.AssetFileDef") + field(2, asset)
    return field(4, field(1, "saved_model_assets") + field(2, field(5, field(1, packed))))


def test_assets_that_tensorflow_1_lists_in_a_collection():
    asset = field(1, field(1, "p:0")) + field(2, "vocab.txt")
    read = graph(text("p", "/made/here/vocab.txt"), node("t", "InitializeTableFromTextFileV2", "h", "p"))
    report = examine(meta(read, listed_as_version_one_does(asset)))
    assert report.findings == ()
    assert [one.path for one in report.references] == ["assets/vocab.txt"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", "a\\b", "http://x/y"])
def test_asset_outside_the_folder(name):
    refused(meta(HONEST, listed_as_version_one_does(field(2, name))), "asset-path")
    refused(meta(HONEST, field(6, field(2, name))), "asset-path")


@pytest.mark.parametrize("stream", ["file:///tmp/x", "file://x", "other"])
def test_print_to_a_file(stream):
    refused(
        meta(graph(node("p", "PrintV2", "x", more=attribute("output_stream", field(2, stream))))),
        "print-file",
    )


def test_print_to_a_file_behind_nodes_that_made_it_look_known():
    def stream(operator: str, value: str) -> bytes:
        return node("p", operator, "x", more=attribute("output_stream", field(2, value)))

    honest, evil = stream("PrintV2", "stderr"), stream("PrintV2", "file:///tmp/x")
    refused(meta(graph(stream("NoOp", "file:///tmp/x"), honest, honest, evil)), "print-file")


def constant(tensor: bytes) -> bytes:
    return meta(graph(node("c", "Const", more=attribute("value", field(8, tensor)))))


def shape(*sizes: int) -> bytes:
    return field(2, b"".join(field(2, number(1, size)) for size in sizes))


@pytest.mark.parametrize("tensor", [
    number(1, DT_FLOAT) + shape(3) + field(4, bytes(8)),
    number(1, DT_FLOAT) + shape(1) + field(5, bytes(8)),
    number(1, DT_FLOAT) + shape(1 << 40) + field(5, bytes(4)),
    number(1, DT_FLOAT) + shape(-1),
    number(1, DT_FLOAT) + shape(1 << 31, 1 << 31),
    number(1, 20) + shape(1) + field(14, field(3, "x")),
    number(1, 21) + shape(1) + field(15, field(1, "x")),
])  # fmt: skip
def test_constant_whose_bytes_disagree_or_unfold_or_point(tensor):
    refused(constant(tensor), "tensor")


def test_constants_as_tensorflow_writes_them_are_clean():
    assert rules_of(constant(number(1, DT_FLOAT) + shape(3) + field(4, bytes(12)))) == set()
    assert (
        rules_of(constant(number(1, DT_FLOAT) + shape(1000) + field(5, bytes(4)))) == set()
    )  # one value for all


def test_two_functions_of_one_name():
    refused(meta(graph(PLACEHOLDER, functions=(RESTORE, RESTORE))), "duplicate")


def test_attribute_of_two_kinds():
    refused(meta(graph(node("n", "NoOp", more=attribute("a", number(3, 1) + field(2, "x"))))), "duplicate")


def test_registered_saver():
    refused(meta(HONEST, field(7, field(1, field(16, "package.Saver")))), "registered")


LAMBDA = '{"class_name": "Lambda", "config": {"function": ["4wE=", null, null]}}'


@pytest.mark.parametrize(("metadata", "rule"), [
    (f'{{"class_name": "Sequential", "config": {{"layers": [{LAMBDA}]}}}}', "keras/code"),
    ('{"class_name": "Package>Layer", "config": {}}', "keras/custom"),
    ('{"class_name": "Dense", "module": "os", "config": {}}', "keras/module"),
])  # fmt: skip
def test_code_in_keras_metadata(metadata, rule):
    objects = field(7, field(1, field(4, field(1, "_tf_keras_layer") + field(3, metadata))))
    assert rule in rules_of(meta(HONEST, objects))
    own = field(1, number(2, 0) + field(3, "root") + field(4, "_tf_keras_sequential") + field(5, metadata))
    assert rule in rules_of(own, "keras_metadata.pb")


def test_keras_metadata_of_plain_layers_is_clean():
    spec = '{"class_name": "TypeSpec", "type_spec": "tf.TensorSpec", "serialized": []}'
    plain = f'{{"name": "d", "class_name": "Dense", "config": {{"units": 3}}, "save_spec": {spec}}}'
    own = field(1, number(2, 0) + field(3, "root") + field(4, "_tf_keras_layer") + field(5, plain))
    assert rules_of(own, "keras_metadata.pb") == set()


def test_bytes_outside_the_schema():
    refused(meta(HONEST, field(60, b"payload")), "field")
    refused(meta(HONEST) + field(2, b"") + b"\x50\x4b", "field")


def test_lengths_numbers_and_depth():
    refused(number(1, 1) + field(2, field(2, b"\x0a\x7f")), "truncated")
    refused(meta(graph(node("n", "NoOp", more=attribute("a", b"\x18" + b"\xff" * 10 + b"\1")))), "varint")
    deep = b""
    for _ in range(60):
        deep = field(51, field(1, deep))
    concrete = field(7, field(2, field(1, "f") + field(2, field(3, deep))))
    refused(meta(HONEST, concrete), "depth")
    refused(meta(graph(field(1, b"\xff") + field(2, "NoOp"))), "encoding")


def test_model_without_a_node():
    refused(number(1, 1) + field(2, field(1, field(4, "serve"))), "empty")


@pytest.mark.parametrize("line", ['model_checkpoint_path: "/root/x"', 'model_checkpoint_path: "../x"'])
def test_note_of_a_checkpoint_elsewhere(line):
    refused(f"{line}\n".encode(), "checkpoint-path", "checkpoint")


def test_note_with_other_lines():
    refused(b'model_checkpoint_path: "a"\nrun: "x"\n', "field", "checkpoint")


MAGIC = bytes.fromhex("57fb808b247547db")


def block(entries: list[tuple[bytes, bytes]], restarts: int = 1) -> bytes:
    body = b"".join(b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in entries)
    return body + bytes(4 * restarts) + pack("<I", restarts)


def entry(
    elements: int = 2, kind: int = DT_FLOAT, shard: int = 0, offset: int = 0, size: int | None = None
) -> bytes:
    size = elements * 4 if size is None else size
    return number(1, kind) + shape(elements) + number(3, shard) + number(4, offset) + number(5, size)


HEADER = number(1, 1) + field(3, number(1, 1))


def index(entries: list[tuple[bytes, bytes]] | None = None, *, data: bytes | None = None, tail: bytes = b"\0" * 5,
          listed: bytes | None = None, meta_block: bytes | None = None, gap: bytes = b"") -> bytes:  # fmt: skip
    data = (
        block(entries if entries is not None else [(b"", HEADER), (b"v", entry())]) if data is None else data
    )
    meta_block = block([]) if meta_block is None else meta_block
    first = data + tail + gap
    handle = varint(0) + varint(len(data)) if listed is None else listed
    second = meta_block + bytes(5)
    third = block([(b"z", handle)])
    handles = (
        varint(len(first)) + varint(len(meta_block)) + varint(len(first) + len(second)) + varint(len(third))
    )
    return first + second + third + bytes(5) + handles.ljust(40, b"\0") + MAGIC


def broken(data: bytes, rule: str, path: str = "variables.index") -> None:
    assert tf_checkpoint.FORMAT.sniff(data[:4096], path)
    assert f"tf-checkpoint/{rule}" in tf_checkpoint.FORMAT.rules
    try:
        found = {finding.rule for finding in tf_checkpoint.FORMAT.read(BytesSource(data), path).findings}
    except Malformed as error:
        found = {error.rule}
    assert found == {f"tf-checkpoint/{rule}"}


def test_the_index_the_attacks_start_from_is_clean():
    report = tf_checkpoint.FORMAT.read(BytesSource(index()), "variables.index")
    assert report.findings == ()
    assert [(one.path, one.end) for one in report.references] == [("variables.data-00000-of-00001", 8)]


def test_index_with_a_compressed_block():
    broken(index(tail=b"\1\0\0\0\0"), "compressed")


def test_index_with_bytes_between_its_blocks():
    broken(index(gap=b"payload"), "table")


def test_index_with_bytes_behind_it():
    broken(index() + b"payload", "table")


def test_index_whose_block_lies_outside():
    broken(index(listed=varint(0) + varint(1 << 40)), "table")


def test_index_with_a_meta_block():
    broken(index(meta_block=block([(b"filter", b"x")])), "table")


def test_index_with_more_restarts_than_bytes():
    broken(index(data=block([(b"", HEADER)])[:-4] + pack("<I", 1 << 30)), "table")


def test_index_with_a_key_twice_or_out_of_order():
    broken(index([(b"", HEADER), (b"v", entry()), (b"v", entry(offset=8))]), "order")
    broken(index([(b"", HEADER), (b"v", entry()), (b"a", entry(offset=8))]), "order")


def test_index_without_header_or_of_foreign_byte_order():
    broken(index([(b"", number(1, 1) + number(2, 1) + field(3, b""))]), "header")
    broken(index([(b"", number(1, 0) + field(3, b""))]), "header")


@pytest.mark.parametrize("value", [entry(size=4), entry(size=-1), entry(offset=-8), entry(shard=1), entry(elements=-1),
                                   entry(kind=99)])  # fmt: skip
def test_tensor_of_a_checkpoint_that_leaves_its_bytes(value):
    broken(index([(b"", HEADER), (b"v", value)]), "size")


def test_tensors_of_a_checkpoint_that_overlap_or_leave_a_gap():
    broken(index([(b"", HEADER), (b"v", entry()), (b"w", entry(offset=4))]), "overlap")
    broken(
        index([(b"", HEADER), (b"v", entry()), (b"w", entry(offset=8 + tf_checkpoint.MAX_GAP_BYTES))]),
        "overlap",
    )
    edge = index([(b"", HEADER), (b"v", entry()), (b"w", entry(offset=7 + tf_checkpoint.MAX_GAP_BYTES))])
    assert tf_checkpoint.FORMAT.read(BytesSource(edge), "variables.index").findings == ()


def test_index_under_another_name():
    broken(index(), "name", "weights.dat")


def test_index_larger_than_is_read():
    class Huge:
        size = tf_checkpoint.MAX_BYTES + 1

        def read(self, offset: int, size: int) -> bytes:
            raise AssertionError("nothing is read")

    with pytest.raises(Malformed) as caught:
        tf_checkpoint.FORMAT.read(Huge(), "variables.index")
    assert caught.value.rule == "tf-checkpoint/limit"
