"""The messages of an ONNX file: field numbers, names and kinds.

Source: `onnx/onnx.proto` of github.com/onnx/onnx, release 1.23 (IR version 14). A newer field refuses until it
stands here.
"""

from typing import Final

from steelyard.formats.protobuf import Message, schema

_TEXT: Final = """
message ModelProto
  1 ir_version varint; 2 producer_name text; 3 producer_version text; 4 domain text; 5 model_version
  varint; 6 doc_string text; 7 graph GraphProto; 8 opset_import OperatorSetIdProto*; 14 metadata_props
  StringStringEntryProto*; 20 training_info TrainingInfoProto*; 25 functions FunctionProto*; 26
  configuration DeviceConfigurationProto*
message GraphProto
  1 node NodeProto*; 2 name text; 5 initializer TensorProto*; 10 doc_string text; 11 input
  ValueInfoProto*; 12 output ValueInfoProto*; 13 value_info ValueInfoProto*; 14 quantization_annotation
  TensorAnnotation*; 15 sparse_initializer SparseTensorProto*; 16 metadata_props StringStringEntryProto*
message OperatorSetIdProto
  1 domain text; 2 version varint
message StringStringEntryProto
  1 key text; 2 value text
message TrainingInfoProto
  1 initialization GraphProto; 2 algorithm GraphProto; 3 initialization_binding StringStringEntryProto*; 4
  update_binding StringStringEntryProto*
message FunctionProto
  1 name text; 4 input text*; 5 output text*; 6 attribute text*; 7 node NodeProto*; 8 doc_string text; 9
  opset_import OperatorSetIdProto*; 10 domain text; 11 attribute_proto AttributeProto*; 12 value_info
  ValueInfoProto*; 13 overload text; 14 metadata_props StringStringEntryProto*
message DeviceConfigurationProto
  1 name text; 2 num_devices varint; 3 device text*
message NodeProto
  1 input text*; 2 output text*; 3 name text; 4 op_type text; 5 attribute AttributeProto*; 6 doc_string
  text; 7 domain text; 8 overload text; 9 metadata_props StringStringEntryProto*; 10 device_configurations
  NodeDeviceConfigurationProto*
message TensorProto
  1 dims varint*; 2 data_type varint; 3 segment TensorProto.Segment; 4 float_data fixed32*; 5 int32_data
  varint*; 6 string_data bytes*; 7 int64_data varint*; 8 name text; 9 raw_data bytes; 10 double_data
  fixed64*; 11 uint64_data varint*; 12 doc_string text; 13 external_data StringStringEntryProto*; 14
  data_location varint; 16 metadata_props StringStringEntryProto*
message ValueInfoProto
  1 name text; 2 type TypeProto; 3 doc_string text; 4 metadata_props StringStringEntryProto*
message TensorAnnotation
  1 tensor_name text; 2 quant_parameter_tensor_names StringStringEntryProto*
message SparseTensorProto
  1 values TensorProto; 2 indices TensorProto; 3 dims varint*
message AttributeProto
  1 name text; 2 f fixed32; 3 i varint; 4 s bytes; 5 t TensorProto; 6 g GraphProto; 7 floats fixed32*; 8
  ints varint*; 9 strings bytes*; 10 tensors TensorProto*; 11 graphs GraphProto*; 13 doc_string text; 14
  tp TypeProto; 15 type_protos TypeProto*; 20 type varint; 21 ref_attr_name text; 22 sparse_tensor
  SparseTensorProto; 23 sparse_tensors SparseTensorProto*
message NodeDeviceConfigurationProto
  1 configuration_id text; 2 sharding_spec ShardingSpecProto*; 3 pipeline_stage varint
message TensorProto.Segment
  1 begin varint; 2 end varint
message TypeProto
  1 tensor_type TypeProto.Tensor; 4 sequence_type TypeProto.Sequence; 5 map_type TypeProto.Map; 6
  denotation text; 7 opaque_type TypeProto.Opaque; 8 sparse_tensor_type TypeProto.SparseTensor; 9
  optional_type TypeProto.Optional
message ShardingSpecProto
  1 tensor_name text; 2 device varint*; 3 index_to_device_group_map IntIntListEntryProto*; 4 sharded_dim
  ShardedDimProto*
message TypeProto.Tensor
  1 elem_type varint; 2 shape TensorShapeProto
message TypeProto.Sequence
  1 elem_type TypeProto
message TypeProto.Map
  1 key_type varint; 2 value_type TypeProto
message TypeProto.Opaque
  1 domain text; 2 name text
message TypeProto.SparseTensor
  1 elem_type varint; 2 shape TensorShapeProto
message TypeProto.Optional
  1 elem_type TypeProto
message IntIntListEntryProto
  1 key varint; 2 value varint*
message ShardedDimProto
  1 axis varint; 2 simple_sharding SimpleShardedDimProto*
message TensorShapeProto
  1 dim TensorShapeProto.Dimension*
message SimpleShardedDimProto
  1 dim_value varint; 2 dim_param text; 3 num_shards varint
message TensorShapeProto.Dimension
  1 dim_value varint; 2 dim_param text; 3 denotation text
"""

MESSAGES: Final[dict[str, Message]] = schema(_TEXT)
