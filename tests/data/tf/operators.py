"""Prints the operators that src/steelyard/formats/tf_operators.py lists, from TensorFlow's own registry.

Run on 2026-11-23 with TensorFlow 2.21.0: python operators.py
By principle: operators without state, less those that take a file, a directory, a host, a Python function or a
descriptor, and less data pipelines, devices, debugging and test operators (which tf.raw_ops does not offer). Of those
with state: variables, tables in memory, control flow, random numbers, arrays, stacks and assertions. Each pattern was
read against the whole registry; an operator that a later release adds stays out until somebody reads it.
"""

import re

import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session

# Operators without state that reach outside, or that belong to a machine rather than to a model.
OUTSIDE = re.compile(
    r"^_|Dataset|Iterator|Reader|TPU|Tpu|^Xla|^Debug|^Copy(Host|Op|ToMesh)?|^CopyToMesh|ReadFile|"
    r"WriteFile|MatchingFiles|VocabRemapping|FromTextFile|Proto(V2)?$|PyFunc|Checkpoint|^Save|"
    r"^Restore|^Snapshot|^Register|^Host|RemapMatrix|RemoteFused|^Remote|^Rpc|Summary|^Dump|"
    r"Collective|^Nccl|^AllToAll|Infeed|Outfeed|^Send$|^Recv$|^DTensor|Barrier|^Stage|^Unstage|Mutex|"
    r"Stats|DataService|CSV|Sql|LMDB|FileSystem|Session|DistributedSave|CalibrationStatistics|"
    r"ImportEvent|Mlir|MiniBatch|Minibatch|ConvertToCoo|ConvertToListOf|ConvertToSparseCore|"
    r"SparseCore|^Test|^Kernel|ImmutableConst|CustomAggregator|^Dummy|^Stub|^Sleep|^Batch(Function)?$|"
    r"^Unbatch|^Abort$|^Worker|HostCompute|^Ex(ecute|pensive)|Sdca|^Mesh|^Relayout|^Fake(Queue|Param)|"
    r"^Assemble|MiniBatch|Fdo|^Global(IterId|ShardIndex)|Embedding|^Nan|^Map(Clear|Inc|Peek|Size|"
    r"Stage|Unst)|^OrderedMap|^Where3|Compile|^Risc|^Symbolic|^Tensor(ForestCreate|Forest)|"
    r"^Ragged.*Variant|Cond?itionalAccumulator$|^SyncDevice|UpdateTask|^SyncG|Device|^Shutdown|^Store|"
    r"^Get(Mini|Ses|Opt|Ele)|Opt(ional|ions)|Model|Infer|^Uniform(Q|D|R)|QueueR?$"
)
# Operators with state that keep it inside the graph.
INSIDE = re.compile(
    r"^(VarHandleOp|ReadVariableOp|AssignVariableOp|AssignAddVariableOp|AssignSubVariableOp|"
    r"DestroyResourceOp|VarIsInitializedOp|VariableShape|Variable|VariableV2|TemporaryVariable|"
    r"DisableCopyOnRead|Resource(Gather|GatherNd|Scatter\w+|Apply\w+|SparseApply\w+|"
    r"StridedSliceAssign|CountUpTo)|If|While|Case|StatefulPartitionedCall|(Mutable|Anonymous|"
    r"AnonymousMutable|MutableDense|AnonymousMutableDense)?HashTable(V2|OfTensors|OfTensorsV2)?|"
    r"LookupTable(Find|Insert|Size|Export|Import|Remove)V2|InitializeTableV2|Assert|"
    r"CheckNumerics(V2)?|Print|PrintV2|Empty|GuaranteeConst|Timestamp|RandomUniform|RandomUniformInt|"
    r"RandomStandardNormal|TruncatedNormal|ParameterizedTruncatedNormal|RandomGamma|"
    r"RandomPoisson(V2)?|RandomShuffle|RandomCrop|Multinomial|Stateful\w+|StatelessRandomGetAlg|"
    r"NonDeterministicInts|Rng\w+|TensorArray\w*|Stack(Push|Pop|Close)?(V2)?|(Uniform|LogUniform|"
    r"LearnedUnigram|FixedUnigram|ThreadUnsafeUnigram|All)CandidateSampler|"
    r"SampleDistortedBoundingBox(V2)?|Skipgram|CudnnRNN\w*|BoostedTrees\w+|IsBoostedTrees\w+|"
    r"AddSparseToTensorsMap|AddManySparseToTensorsMap|TakeManySparseFromTensorsMap|DeepCopy|"
    r"GraphDefVersion|IsResourceHandleRefCounting)$"
)
# Caught by a pattern above, read one by one: they compute.
PURE = {
    "Snapshot", "DecodeCSV", "RaggedTensorToVariant", "RaggedTensorFromVariant", "RaggedTensorToVariantGradient",
    "FakeParam", "OptionalFromValue", "OptionalNone", "OptionalHasValue", "OptionalGetValue", "ScalarSummary",
    "HistogramSummary", "MergeSummary", "TensorSummary", "TensorSummaryV2", "ImageSummary", "AudioSummary",
    "AudioSummaryV2", "SymbolicGradient", "BatchFunction",
}  # fmt: skip
# A vocabulary file as an attribute.
FILES = {"Skipgram", "FixedUnigramCandidateSampler"}

listed = op_def_pb2.OpList()
listed.ParseFromString(bytes(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())))


def computes(op: op_def_pb2.OpDef) -> bool:
    if op.name in FILES or not hasattr(tf.raw_ops, op.name):
        return False
    if op.name in PURE or re.match("Uniform(Q|D|R|C)", op.name):
        return True
    return bool(INSIDE.match(op.name)) if op.is_stateful else not OUTSIDE.search(op.name)


print(*sorted(op.name for op in listed.op if computes(op)))
