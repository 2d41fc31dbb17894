"""Whole PyTorch models in a pickle: the classes of torch.nn, and the shape of the state each is given.

`torch.save(model)` writes NEWOBJ of the class without arguments and BUILD with its attributes. `__setstate__` of these
classes puts them into `__dict__`; nothing is called. What could be called later is refused: hooks other than those of
weight_norm and spectral_norm, and any function that is not an activation of PyTorch's own.

Class names: torch.nn of PyTorch 1.13 and 2.13 without the parallel and C++ wrappers; quantised modules also under
torch.nn, where versions before 1.13 kept them. The file is long because of them.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from steelyard.formats.pickle_values import Misfit, Node, Spec, Value, node_of
from steelyard.formats.pickled_shapes import ATTRIBUTE, attributes_of, is_data, items_of, pairs_of
from steelyard.formats.torch_operators import PACKED_CLASSES

_CLASSES: Final[Mapping[str, str]] = {
    "torch.ao.nn.intrinsic.modules.fused": (
        "BNReLU2d BNReLU3d ConvAdd2d ConvAddReLU2d ConvBn1d ConvBn2d ConvBn3d ConvBnReLU1d ConvBnReLU2d "
        "ConvBnReLU3d ConvReLU1d ConvReLU2d ConvReLU3d LinearBn1d LinearLeakyReLU LinearReLU LinearTanh"
    ),
    "torch.ao.nn.intrinsic.qat.modules.conv_fused": (
        "ConvBn1d ConvBn2d ConvBn3d ConvBnReLU1d ConvBnReLU2d ConvBnReLU3d ConvReLU1d ConvReLU2d ConvReLU3d"
    ),
    "torch.ao.nn.intrinsic.qat.modules.linear_fused": "LinearBn1d",
    "torch.ao.nn.intrinsic.qat.modules.linear_relu": "LinearReLU",
    "torch.ao.nn.intrinsic.quantized.dynamic.modules.linear_relu": "LinearReLU",
    "torch.ao.nn.intrinsic.quantized.modules.bn_relu": "BNReLU2d BNReLU3d",
    "torch.ao.nn.intrinsic.quantized.modules.conv_add": "ConvAdd2d ConvAddReLU2d",
    "torch.ao.nn.intrinsic.quantized.modules.conv_relu": "ConvReLU1d ConvReLU2d ConvReLU3d",
    "torch.ao.nn.intrinsic.quantized.modules.linear_relu": "LinearLeakyReLU LinearReLU LinearTanh",
    "torch.ao.nn.qat.dynamic.modules.linear": "Linear",
    "torch.ao.nn.qat.modules.conv": "Conv1d Conv2d Conv3d",
    "torch.ao.nn.qat.modules.embedding_ops": "Embedding EmbeddingBag",
    "torch.ao.nn.qat.modules.linear": "Linear",
    "torch.ao.nn.quantizable.modules.activation": "MultiheadAttention",
    "torch.ao.nn.quantizable.modules.rnn": "LSTM LSTMCell",
    "torch.ao.nn.quantized.dynamic.modules.conv": (
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"
    ),
    "torch.ao.nn.quantized.dynamic.modules.linear": "Linear",
    "torch.ao.nn.quantized.dynamic.modules.rnn": (
        "GRU GRUCell LSTM LSTMCell PackedParameter RNNBase RNNCell RNNCellBase"
    ),
    "torch.ao.nn.quantized.modules": "DeQuantize Quantize",
    "torch.ao.nn.quantized.modules.activation": (
        "ELU Hardswish LeakyReLU MultiheadAttention PReLU ReLU6 Sigmoid Softmax"
    ),
    "torch.ao.nn.quantized.modules.batchnorm": "BatchNorm2d BatchNorm3d",
    "torch.ao.nn.quantized.modules.conv": (
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"
    ),
    "torch.ao.nn.quantized.modules.dropout": "Dropout",
    "torch.ao.nn.quantized.modules.embedding_ops": "Embedding EmbeddingBag EmbeddingPackedParams",
    "torch.ao.nn.quantized.modules.functional_modules": "FXFloatFunctional FloatFunctional QFunctional",
    "torch.ao.nn.quantized.modules.linear": "Linear LinearPackedParams",
    "torch.ao.nn.quantized.modules.normalization": (
        "GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d LayerNorm"
    ),
    "torch.ao.nn.quantized.modules.rnn": "LSTM",
    "torch.ao.nn.quantized.modules.utils": "WeightedQuantizedModule",
    "torch.ao.nn.quantized.reference.modules.conv": (
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"
    ),
    "torch.ao.nn.quantized.reference.modules.linear": "Linear",
    "torch.ao.nn.quantized.reference.modules.rnn": "GRU GRUCell LSTM LSTMCell RNNBase RNNCell RNNCellBase",
    "torch.ao.nn.quantized.reference.modules.sparse": "Embedding EmbeddingBag",
    "torch.ao.nn.quantized.reference.modules.utils": "ReferenceQuantizedModule",
    "torch.ao.nn.sparse.quantized.dynamic.linear": "Linear",
    "torch.ao.nn.sparse.quantized.linear": "Linear LinearPackedParams",
    "torch.nn.intrinsic.modules.fused": (
        "BNReLU2d BNReLU3d ConvAdd2d ConvAddReLU2d ConvBn1d ConvBn2d ConvBn3d ConvBnReLU1d ConvBnReLU2d "
        "ConvBnReLU3d ConvReLU1d ConvReLU2d ConvReLU3d LinearBn1d LinearLeakyReLU LinearReLU LinearTanh"
    ),
    "torch.nn.intrinsic.qat.modules.conv_fused": (
        "ConvBn1d ConvBn2d ConvBn3d ConvBnReLU1d ConvBnReLU2d ConvBnReLU3d ConvReLU1d ConvReLU2d ConvReLU3d"
    ),
    "torch.nn.intrinsic.qat.modules.linear_fused": "LinearBn1d",
    "torch.nn.intrinsic.qat.modules.linear_relu": "LinearReLU",
    "torch.nn.intrinsic.quantized.dynamic.modules.linear_relu": "LinearReLU",
    "torch.nn.intrinsic.quantized.modules.bn_relu": "BNReLU2d BNReLU3d",
    "torch.nn.intrinsic.quantized.modules.conv_add": "ConvAdd2d ConvAddReLU2d",
    "torch.nn.intrinsic.quantized.modules.conv_relu": "ConvReLU1d ConvReLU2d ConvReLU3d",
    "torch.nn.intrinsic.quantized.modules.linear_relu": "LinearLeakyReLU LinearReLU LinearTanh",
    "torch.nn.modules.activation": (
        "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish "
        "MultiheadAttention PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus "
        "Softshrink Softsign Tanh Tanhshrink Threshold"
    ),
    "torch.nn.modules.adaptive": "AdaptiveLogSoftmaxWithLoss",
    "torch.nn.modules.batchnorm": (
        "BatchNorm1d BatchNorm2d BatchNorm3d LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d SyncBatchNorm"
    ),
    "torch.nn.modules.channelshuffle": "ChannelShuffle",
    "torch.nn.modules.container": "Container ModuleDict ModuleList ParameterDict ParameterList Sequential",
    "torch.nn.modules.conv": (
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d LazyConv1d LazyConv2d "
        "LazyConv3d LazyConvTranspose1d LazyConvTranspose2d LazyConvTranspose3d"
    ),
    "torch.nn.modules.distance": "CosineSimilarity PairwiseDistance",
    "torch.nn.modules.dropout": "AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout",
    "torch.nn.modules.flatten": "Flatten Unflatten",
    "torch.nn.modules.fold": "Fold Unfold",
    "torch.nn.modules.instancenorm": (
        "InstanceNorm1d InstanceNorm2d InstanceNorm3d LazyInstanceNorm1d LazyInstanceNorm2d "
        "LazyInstanceNorm3d"
    ),
    "torch.nn.modules.linear": "Bilinear Identity LazyLinear Linear NonDynamicallyQuantizableLinear",
    "torch.nn.modules.loss": (
        "BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss GaussianNLLLoss "
        "HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss LinearCrossEntropyLoss MSELoss MarginRankingLoss "
        "MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss NLLLoss2d PoissonNLLLoss "
        "SmoothL1Loss SoftMarginLoss TripletMarginLoss TripletMarginWithDistanceLoss"
    ),
    "torch.nn.modules.module": "Module",
    "torch.nn.modules.normalization": "CrossMapLRN2d GroupNorm LayerNorm LocalResponseNorm RMSNorm",
    "torch.nn.modules.padding": (
        "CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d "
        "ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d "
        "ZeroPad1d ZeroPad2d ZeroPad3d"
    ),
    "torch.nn.modules.pixelshuffle": "PixelShuffle PixelUnshuffle",
    "torch.nn.modules.pooling": (
        "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d "
        "AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d FractionalMaxPool2d FractionalMaxPool3d LPPool1d "
        "LPPool2d LPPool3d MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d"
    ),
    "torch.nn.modules.rnn": "GRU GRUCell LSTM LSTMCell RNN RNNBase RNNCell RNNCellBase",
    "torch.nn.modules.sparse": "Embedding EmbeddingBag",
    "torch.nn.modules.transformer": (
        "Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer"
    ),
    "torch.nn.modules.upsampling": "Upsample UpsamplingBilinear2d UpsamplingNearest2d",
    "torch.nn.qat.dynamic.modules.linear": "Linear",
    "torch.nn.qat.modules.conv": "Conv1d Conv2d Conv3d",
    "torch.nn.qat.modules.embedding_ops": "Embedding EmbeddingBag",
    "torch.nn.qat.modules.linear": "Linear",
    "torch.nn.quantizable.modules.activation": "MultiheadAttention",
    "torch.nn.quantizable.modules.rnn": "LSTM LSTMCell",
    "torch.nn.quantized.dynamic.modules.conv": (
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"
    ),
    "torch.nn.quantized.dynamic.modules.linear": "Linear",
    "torch.nn.quantized.dynamic.modules.rnn": (
        "GRU GRUCell LSTM LSTMCell PackedParameter RNNBase RNNCell RNNCellBase"
    ),
    "torch.nn.quantized.modules": "DeQuantize Quantize",
    "torch.nn.quantized.modules.activation": (
        "ELU Hardswish LeakyReLU MultiheadAttention PReLU ReLU6 Sigmoid Softmax"
    ),
    "torch.nn.quantized.modules.batchnorm": "BatchNorm2d BatchNorm3d",
    "torch.nn.quantized.modules.conv": "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    "torch.nn.quantized.modules.dropout": "Dropout",
    "torch.nn.quantized.modules.embedding_ops": "Embedding EmbeddingBag EmbeddingPackedParams",
    "torch.nn.quantized.modules.functional_modules": "FXFloatFunctional FloatFunctional QFunctional",
    "torch.nn.quantized.modules.linear": "Linear LinearPackedParams",
    "torch.nn.quantized.modules.normalization": (
        "GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d LayerNorm"
    ),
    "torch.nn.quantized.modules.rnn": "LSTM",
    "torch.nn.quantized.modules.utils": "WeightedQuantizedModule",
    "torch.nn.quantized.reference.modules.conv": (
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"
    ),
    "torch.nn.quantized.reference.modules.linear": "Linear",
    "torch.nn.quantized.reference.modules.rnn": "GRU GRUCell LSTM LSTMCell RNNBase RNNCell RNNCellBase",
    "torch.nn.quantized.reference.modules.sparse": "Embedding EmbeddingBag",
    "torch.nn.quantized.reference.modules.utils": "ReferenceQuantizedModule",
    "torch.nn.sparse.quantized.dynamic.linear": "Linear",
    "torch.nn.sparse.quantized.linear": "Linear LinearPackedParams",
}

_ACTIVATIONS: Final[Mapping[str, str]] = {
    "torch.nn.functional": (
        "celu dropout elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid mish "
        "prelu relu relu6 rrelu selu sigmoid silu softmax softplus softshrink softsign tanh tanhshrink _threshold"
    ),
    "torch._C._nn": (
        "elu elu_ gelu glu hardsigmoid hardswish hardtanh hardtanh_ leaky_relu leaky_relu_ log_sigmoid mish relu6 silu "
        "softplus softshrink"
    ),
    "torch": (
        "celu dropout hardshrink log_softmax prelu relu relu_ rrelu selu selu_ sigmoid softmax tanh threshold"
    ),
}


def _new_module(args: Sequence[Value]) -> Value:
    if args:
        raise Misfit("expected no arguments")
    return node_of("module")


def _module_state(_node: Node, state: Value) -> None:
    """Attributes of plain data, tensors and other modules; every table of hooks is empty."""
    for name, value in pairs_of(state, "the state"):
        if not isinstance(name, str) or not (ATTRIBUTE.fullmatch(name) or name == "__overloads__"):
            raise Misfit("expected names of attributes")
        if "hook" in name and not _is_quiet(value):
            raise Misfit(f"expected nothing in {name}")
        if not is_data(value):
            raise Misfit(f"expected data in {name}")


def _is_quiet(value: Value) -> bool:
    """A table of hooks with nothing in it, or with the hooks of weight_norm and spectral_norm."""
    if value is None or isinstance(value, bool) or value == ():
        return True
    if not isinstance(value, Node) or value.kind not in {"OrderedDict", "dict", "set", "list"}:
        return False
    kept = value.kept or []
    known = all(
        isinstance(item, int) or (isinstance(item, Node) and item.kind == "norm hook") for item in kept
    )
    return value.count == len(kept) and known and (value.count > 0 or value.weight == 1)


def _new_hook(args: Sequence[Value]) -> Value:
    if args:
        raise Misfit("expected no arguments")
    return node_of("norm hook")


def _hook_state(_node: Node, state: Value) -> None:
    """Names and numbers: which weight, which dimension. `fn` and `hook` are the hook that another one wraps."""
    for name, value in attributes_of(state):
        if isinstance(value, Node) and not (name in {"fn", "hook"} and value.kind == "norm hook"):
            raise Misfit(f"expected a plain value in {name}")


def _packed_state(_node: Node, state: Value) -> None:
    """(state, class) of a packed weight: PyTorch looks the class up in its own registry."""
    parts = items_of(state, "the state")
    if len(parts) != 2 or parts[1] not in PACKED_CLASSES or not is_data(parts[0]):
        raise Misfit("expected (state, class of packed weights)")


def _quantised_state(node: Node, state: Value) -> None:
    """Quantised layers have a `__setstate__` that unpacks a tuple of plain values and tensors."""
    if not isinstance(state, tuple) and not (isinstance(state, Node) and state.kind == "tuple"):
        _module_state(node, state)
    elif not is_data(state):
        raise Misfit("expected data in the state")


_MODULE: Final = Spec(new=_new_module, build=_module_state)
_QUANTISED: Final = Spec(new=_new_module, build=_quantised_state)
_FUNCTION: Final = Spec(data=True)
_HOOK: Final = Spec(new=_new_hook, build=_hook_state)
_HOOKS: Final = (
    ("torch.nn.modules.module", "_WrappedHook"),
    ("torch.nn.utils.weight_norm", "WeightNorm"),
    ("torch.nn.utils.spectral_norm", "SpectralNorm"),
    ("torch.nn.utils.spectral_norm", "SpectralNormStateDictHook"),
    ("torch.nn.utils.spectral_norm", "SpectralNormLoadStateDictPreHook"),
)

MODULES: Final[Mapping[tuple[str, str], Spec]] = {
    **dict.fromkeys(_HOOKS, _HOOK),
    ("torch", "ScriptObject"): Spec(new=_new_module, build=_packed_state),
    ("torch._C", "ScriptObject"): Spec(new=_new_module, build=_packed_state),
    **{
        (module, name): _QUANTISED if ".quantized." in module else _MODULE
        for module, names in _CLASSES.items()
        for name in names.split()
    },
    **{(module, name): _FUNCTION for module, names in _ACTIVATIONS.items() for name in names.split()},
}
