"""The messages of TensorFlow's SavedModel, GraphDef and checkpoint files: field numbers, names and kinds.

Source: the proto files below `tensorflow/core/framework`, `tensorflow/core/protobuf` and
`tensorflow/python/keras/protobuf` of github.com/tensorflow/tensorflow, release 2.21. A newer field refuses until it
stands here.
"""

from typing import Final

from steelyard.formats.protobuf import Message, schema

_TEXT: Final = """
message SavedModel
  1 saved_model_schema_version varint; 2 meta_graphs MetaGraphDef*
message BundleHeaderProto
  1 num_shards varint; 2 endianness varint; 3 version VersionDef
message BundleEntryProto
  1 dtype varint; 2 shape TensorShapeProto; 3 shard_id varint; 4 offset varint; 5 size varint; 6 crc32c
  fixed32; 7 slices TensorSliceProto*
message FingerprintDef
  1 saved_model_checksum varint; 2 graph_def_program_hash varint; 3 signature_def_hash varint; 4
  saved_object_graph_hash varint; 5 checkpoint_hash varint; 6 version VersionDef; 7 uuid text
message MetaGraphDef
  1 meta_info_def MetaGraphDef.MetaInfoDef; 2 graph_def GraphDef; 3 saver_def SaverDef; 4 collection_def
  MetaGraphDef.CollectionDefEntry*; 5 signature_def MetaGraphDef.SignatureDefEntry*; 6 asset_file_def
  AssetFileDef*; 7 object_graph_def SavedObjectGraph
message VersionDef
  1 producer varint; 2 min_consumer varint; 3 bad_consumers varint*
message TensorShapeProto
  2 dim TensorShapeProto.Dim*; 3 unknown_rank varint
message TensorSliceProto
  1 extent TensorSliceProto.Extent*
message MetaGraphDef.MetaInfoDef
  1 meta_graph_version text; 2 stripped_op_list OpList; 3 any_info Any; 4 tags text*; 5 tensorflow_version
  text; 6 tensorflow_git_version text; 7 stripped_default_attrs varint; 8 function_aliases
  MetaGraphDef.MetaInfoDef.FunctionAliasesEntry*
message GraphDef
  1 node NodeDef*; 2 library FunctionDefLibrary; 3 version varint; 4 versions VersionDef; 5 debug_info
  GraphDebugInfo
message SaverDef
  1 filename_tensor_name text; 2 save_tensor_name text; 3 restore_op_name text; 4 max_to_keep varint; 5
  sharded varint; 6 keep_checkpoint_every_n_hours fixed32; 7 version varint
message MetaGraphDef.CollectionDefEntry
  1 key text; 2 value CollectionDef
message MetaGraphDef.SignatureDefEntry
  1 key text; 2 value SignatureDef
message AssetFileDef
  1 tensor_info TensorInfo; 2 filename text
message SavedObjectGraph
  1 nodes SavedObject*; 2 concrete_functions SavedObjectGraph.ConcreteFunctionsEntry*
message TensorShapeProto.Dim
  1 size varint; 2 name text
message TensorSliceProto.Extent
  1 start varint; 2 length varint
message OpList
  1 op OpDef*
message Any
  1 type_url text; 2 value bytes
message MetaGraphDef.MetaInfoDef.FunctionAliasesEntry
  1 key text; 2 value text
message NodeDef
  1 name text; 2 op text; 3 input text*; 4 device text; 5 attr NodeDef.AttrEntry*; 6
  experimental_debug_info NodeDef.ExperimentalDebugInfo; 7 experimental_type FullTypeDef
message FunctionDefLibrary
  1 function FunctionDef*; 2 gradient GradientDef*; 3 registered_gradients RegisteredGradient*
message GraphDebugInfo
  1 files text*; 2 traces GraphDebugInfo.TracesEntry*; 4 frames_by_id GraphDebugInfo.FramesByIdEntry*; 5
  name_to_trace_id GraphDebugInfo.NameToTraceIdEntry*; 6 traces_by_id GraphDebugInfo.TracesByIdEntry*
message CollectionDef
  1 node_list CollectionDef.NodeList; 2 bytes_list CollectionDef.BytesList; 3 int64_list
  CollectionDef.Int64List; 4 float_list CollectionDef.FloatList; 5 any_list CollectionDef.AnyList
message SignatureDef
  1 inputs SignatureDef.InputsEntry*; 2 outputs SignatureDef.OutputsEntry*; 3 method_name text; 4 defaults
  SignatureDef.DefaultsEntry*
message TensorInfo
  1 name text; 2 dtype varint; 3 tensor_shape TensorShapeProto; 4 coo_sparse TensorInfo.CooSparse; 5
  composite_tensor TensorInfo.CompositeTensor
message SavedObject
  1 children TrackableObjectGraph.TrackableObject.ObjectReference*; 3 slot_variables
  TrackableObjectGraph.TrackableObject.SlotVariableReference*; 4 user_object SavedUserObject; 5 asset
  SavedAsset; 6 function SavedFunction; 7 variable SavedVariable; 8 bare_concrete_function
  SavedBareConcreteFunction; 9 constant SavedConstant; 10 resource SavedResource; 11 saveable_objects
  SavedObject.SaveableObjectsEntry*; 12 captured_tensor CapturedTensor; 13 registered_name text; 14
  serialized_user_proto Any; 15 dependencies TrackableObjectGraph.TrackableObject.ObjectReference*; 16
  registered_saver text
message SavedObjectGraph.ConcreteFunctionsEntry
  1 key text; 2 value SavedConcreteFunction
message OpDef
  1 name text; 2 input_arg OpDef.ArgDef*; 3 output_arg OpDef.ArgDef*; 4 attr OpDef.AttrDef*; 5 summary
  text; 6 description text; 8 deprecation OpDeprecation; 16 is_aggregate varint; 17 is_stateful varint; 18
  is_commutative varint; 19 allows_uninitialized_input varint; 20 control_output text*; 21
  is_distributed_communication varint
message NodeDef.AttrEntry
  1 key text; 2 value AttrValue
message NodeDef.ExperimentalDebugInfo
  1 original_node_names text*; 2 original_func_names text*
message FullTypeDef
  1 type_id varint; 2 args FullTypeDef*; 3 s text; 4 i varint
message FunctionDef
  1 signature OpDef; 3 node_def NodeDef*; 4 ret FunctionDef.RetEntry*; 5 attr FunctionDef.AttrEntry*; 6
  control_ret FunctionDef.ControlRetEntry*; 7 arg_attr FunctionDef.ArgAttrEntry*; 8 resource_arg_unique_id
  FunctionDef.ResourceArgUniqueIdEntry*
message GradientDef
  1 function_name text; 2 gradient_func text
message RegisteredGradient
  1 gradient_func text; 2 registered_op_type text
message GraphDebugInfo.TracesEntry
  1 key text; 2 value GraphDebugInfo.StackTrace
message GraphDebugInfo.FramesByIdEntry
  1 key fixed64; 2 value GraphDebugInfo.FileLineCol
message GraphDebugInfo.NameToTraceIdEntry
  1 key text; 2 value fixed64
message GraphDebugInfo.TracesByIdEntry
  1 key fixed64; 2 value GraphDebugInfo.StackTrace
message CollectionDef.NodeList
  1 value text*
message CollectionDef.BytesList
  1 value bytes*
message CollectionDef.Int64List
  1 value varint*
message CollectionDef.FloatList
  1 value fixed32*
message CollectionDef.AnyList
  1 value Any*
message SignatureDef.InputsEntry
  1 key text; 2 value TensorInfo
message SignatureDef.OutputsEntry
  1 key text; 2 value TensorInfo
message SignatureDef.DefaultsEntry
  1 key text; 2 value TensorProto
message TensorInfo.CooSparse
  1 values_tensor_name text; 2 indices_tensor_name text; 3 dense_shape_tensor_name text
message TensorInfo.CompositeTensor
  1 type_spec TypeSpecProto; 2 components TensorInfo*
message TrackableObjectGraph.TrackableObject.ObjectReference
  1 node_id varint; 2 local_name text
message TrackableObjectGraph.TrackableObject.SlotVariableReference
  1 original_variable_node_id varint; 2 slot_name text; 3 slot_variable_node_id varint
message SavedUserObject
  1 identifier text; 2 version VersionDef; 3 metadata text
message SavedAsset
  1 asset_file_def_index varint
message SavedFunction
  1 concrete_functions text*; 2 function_spec FunctionSpec
message SavedVariable
  1 dtype varint; 2 shape TensorShapeProto; 3 trainable varint; 4 synchronization varint; 5 aggregation
  varint; 6 name text; 7 device text; 8 experimental_distributed_variable_components SavedVariable*
message SavedBareConcreteFunction
  1 concrete_function_name text; 2 argument_keywords text*; 3 allowed_positional_arguments varint; 4
  function_spec FunctionSpec
message SavedConstant
  1 operation text
message SavedResource
  1 device text
message SavedObject.SaveableObjectsEntry
  1 key text; 2 value SaveableObject
message CapturedTensor
  1 name text; 2 concrete_function text
message SavedConcreteFunction
  2 bound_inputs varint*; 3 canonicalized_input_signature StructuredValue; 4 output_signature
  StructuredValue
message OpDef.ArgDef
  1 name text; 2 description text; 3 type varint; 4 type_attr text; 5 number_attr text; 6 type_list_attr
  text; 7 handle_data ResourceHandleProto.DtypeAndShape*; 16 is_ref varint; 17 experimental_full_type
  FullTypeDef
message OpDef.AttrDef
  1 name text; 2 type text; 3 default_value AttrValue; 4 description text; 5 has_minimum varint; 6 minimum
  varint; 7 allowed_values AttrValue
message OpDeprecation
  1 version varint; 2 explanation text
message AttrValue
  1 list AttrValue.ListValue; 2 s bytes; 3 i varint; 4 f fixed32; 5 b varint; 6 type varint; 7 shape
  TensorShapeProto; 8 tensor TensorProto; 9 placeholder text; 10 func NameAttrList
message FunctionDef.RetEntry
  1 key text; 2 value text
message FunctionDef.AttrEntry
  1 key text; 2 value AttrValue
message FunctionDef.ControlRetEntry
  1 key text; 2 value text
message FunctionDef.ArgAttrEntry
  1 key varint; 2 value FunctionDef.ArgAttrs
message FunctionDef.ResourceArgUniqueIdEntry
  1 key varint; 2 value varint
message GraphDebugInfo.StackTrace
  1 file_line_cols GraphDebugInfo.FileLineCol*; 2 frame_id fixed64*
message GraphDebugInfo.FileLineCol
  1 file_index varint; 2 line varint; 3 col varint; 4 func text; 5 code text
message TensorProto
  1 dtype varint; 2 tensor_shape TensorShapeProto; 3 version_number varint; 4 tensor_content bytes; 5
  float_val fixed32*; 6 double_val fixed64*; 7 int_val varint*; 8 string_val bytes*; 9 scomplex_val
  fixed32*; 10 int64_val varint*; 11 bool_val varint*; 12 dcomplex_val fixed64*; 13 half_val varint*; 14
  resource_handle_val ResourceHandleProto*; 15 variant_val VariantTensorDataProto*; 16 uint32_val varint*;
  17 uint64_val varint*; 18 float8_val bytes
message TypeSpecProto
  1 type_spec_class varint; 2 type_state StructuredValue; 3 type_spec_class_name text; 4
  num_flat_components varint
message FunctionSpec
  1 fullargspec StructuredValue; 2 is_method varint; 5 input_signature StructuredValue; 6 jit_compile
  varint
message SaveableObject
  2 save_function varint; 3 restore_function varint
message StructuredValue
  1 none_value NoneValue; 11 float64_value fixed64; 12 int64_value varint; 13 string_value text; 14
  bool_value varint; 31 tensor_shape_value TensorShapeProto; 32 tensor_dtype_value varint; 33
  tensor_spec_value TensorSpecProto; 34 type_spec_value TypeSpecProto; 35 bounded_tensor_spec_value
  BoundedTensorSpecProto; 51 list_value ListValue; 52 tuple_value TupleValue; 53 dict_value DictValue; 54
  named_tuple_value NamedTupleValue; 55 tensor_value TensorProto; 56 numpy_value TensorProto
message ResourceHandleProto.DtypeAndShape
  1 dtype varint; 2 shape TensorShapeProto
message AttrValue.ListValue
  2 s bytes*; 3 i varint*; 4 f fixed32*; 5 b varint*; 6 type varint*; 7 shape TensorShapeProto*; 8 tensor
  TensorProto*; 9 func NameAttrList*
message NameAttrList
  1 name text; 2 attr NameAttrList.AttrEntry*
message FunctionDef.ArgAttrs
  1 attr FunctionDef.ArgAttrs.AttrEntry*
message ResourceHandleProto
  1 device text; 2 container text; 3 name text; 4 hash_code varint; 5 maybe_type_name text; 6
  dtypes_and_shapes ResourceHandleProto.DtypeAndShape*
message VariantTensorDataProto
  1 type_name text; 2 metadata bytes; 3 tensors TensorProto*
message NoneValue
message TensorSpecProto
  1 name text; 2 shape TensorShapeProto; 3 dtype varint
message BoundedTensorSpecProto
  1 name text; 2 shape TensorShapeProto; 3 dtype varint; 4 minimum TensorProto; 5 maximum TensorProto
message ListValue
  1 values StructuredValue*
message TupleValue
  1 values StructuredValue*
message DictValue
  1 fields DictValue.FieldsEntry*
message NamedTupleValue
  1 name text; 2 values PairValue*
message NameAttrList.AttrEntry
  1 key text; 2 value AttrValue
message FunctionDef.ArgAttrs.AttrEntry
  1 key text; 2 value AttrValue
message DictValue.FieldsEntry
  1 key text; 2 value StructuredValue
message PairValue
  1 key text; 2 value StructuredValue
message SavedMetadata
  1 nodes KerasObject*
message KerasObject
  2 node_id varint; 3 node_path text; 4 identifier text; 5 metadata text; 6 version VersionDef
"""

MESSAGES: Final[dict[str, Message]] = schema(_TEXT)
