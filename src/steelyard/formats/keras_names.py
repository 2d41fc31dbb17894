"""Names that Keras itself builds from a configuration. Written by tests/data/keras/names.py.

Left out: whatever runs code, imports a module or opens a file that the configuration names.
Source: keras 2.10 to 2.15, keras 3.0 to 3.15 and tf_keras 2.16, 2.19; read on 2026-11-23.
"""

from typing import Final

CLASSES: Final = frozenset(
    """
    AUC AWQConfig AWQDTypePolicy Abs AbsMaxQuantizer Absolute AbstractRNNCell Accuracy Activation
    ActivityRegularization Adadelta Adafactor Adagrad Adam AdamW Adamax AdaptiveAveragePool
    AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPool
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AffineTransform All
    AllClose AlphaDropout Amax Amin Angle Any Append Arange Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh
    Argmax Argmin Argpartition Argsort Array ArraySplit Attention AugMix AutoContrast Average AveragePool
    AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D Bartlett BatchNorm
    BatchNormalization Bidirectional BinaryAccuracy BinaryCrossentropy BinaryFocalCrossentropy BinaryIoU Bincount
    BitwiseAnd BitwiseInvert BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor Blackman
    BroadcastTo CDist CTC CTCDecode CTCLoss Cast CategoricalAccuracy CategoricalCrossentropy
    CategoricalFocalCrossentropy CategoricalGeneralizedCrossEntropy CategoricalHinge CategoryEncoding Cbrt Ceil
    Celu CenterCrop Cholesky CholeskyInverse Circle Clip Concatenate ConcordanceCorrelation Conj Conjugate
    Constant Constraint ContrastLimitedAdaptiveHistogramEqualization Conv Conv1D Conv1DTranspose Conv2D
    Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D ConvTranspose ConvertToTensor
    Convolution1D Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D Convolution3DTranspose
    Copy Corrcoef Correlate Cos Cosh CosineDecay CosineDecayRestarts CosineSimilarity CountNonzero CropImages
    Cropping1D Cropping2D Cropping3D Cross CtcLoss CuDNNGRU CuDNNLSTM Cumprod Cumsum CustomScaleLayer CutMix
    DTypePolicy DTypePolicyMap Deg2rad Dense DepthToSpace DepthwiseConv DepthwiseConv1D DepthwiseConv2D Det Diag
    Diagflat Diagonal Dice Diff Digitize Discretization Divide DivideNoNan Dot DotProductAttention Dropout Dsplit
    Dstack DynamicEmbedding DynamicLookup ELU Eig Eigh Einsum EinsumDense ElasticTransform Elu Embedding Empty
    EmptyLike Equal Equalization Erf Erfc Erfinv Exp Exp2 ExpandDims Expm1 ExponentialDecay ExtractPatches
    ExtractPatches3D ExtractSequences Eye F1Score FBetaScore FFT FFT2 Fabs FalseNegatives FalsePositives Flatten
    Flip Fliplr Flipud Float8QuantizationConfig FloatDTypePolicy Floor FloorDivide Fmax Fmin Fmod Fold Ftrl Full
    FullLike Functional GPTQConfig GPTQDTypePolicy GRU GRUCell GaussianBlur GaussianDropout GaussianNoise Gcd Gelu
    Geomspace GetItem GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalAvgPool1D
    GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D
    GlobalMaxPooling2D GlobalMaxPooling3D GlorotNormal GlorotUniform Glu Greater GreaterEqual GroupNormalization
    GroupQueryAttention HSVToRGB Hamming Hanning HardShrink HardSigmoid HardSilu HardTanh HashedCrossing Hashing
    HeNormal HeUniform Heaviside Hinge Histogram Hsplit Hstack Huber Hypot I0 IFFT2 IRFFT ISTFT Identity
    IdentityInitializer Imag InTopK Initializer Inner InputLayer InputSpec Int4DTypePolicy Int4QuantizationConfig
    Int8QuantizationConfig IntegerLookup Inv InverseTimeDecay IoU IsIn Isclose Isfinite Isinf Isnan Isneginf
    Isposinf Isreal JVP KLDivergence Kaiser KerasHistory KerasTensor Kron L1 L1L2 L2 LSTM LSTMCell Lamb Layer
    LayerNorm LayerNormalization LayerScale Lcm Ldexp LeakyReLU LeakyRelu LearningRateSchedule LecunNormal
    LecunUniform LeftShift Less LessEqual LinearModel Linspace Lion LocallyConnected1D LocallyConnected2D Log
    Log10 Log1p Log2 LogCosh LogCoshError LogSigmoid LogSoftmax Logaddexp Logaddexp2 Logdet LogicalAnd LogicalNot
    LogicalOr LogicalXor Logspace Logsumexp Loss LossScaleOptimizer Lstsq LuFactor MapCoordinates Masking Matmul
    MatrixRank Max MaxNorm MaxNumBoundingBoxes MaxPool MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D
    MaxPooling3D Maximum Mean MeanAbsoluteError MeanAbsolutePercentageError MeanIoU MeanMetricWrapper
    MeanRelativeError MeanSquaredError MeanSquaredLogarithmicError MeanTensor Median MelSpectrogram Meshgrid
    Metric Min MinMaxNorm Minimum MixUp Mod Model Moments Moveaxis MultiHeadAttention MultiHot MultiOptimizer
    Multiply Muon Nadam NanToNum Nanargmax Nanargmin Nancumprod Nancumsum Nanmax Nanmean Nanmedian Nanmin
    Nanpercentile Nanprod Nanquantile Nanstd Nansum Nanvar Ndim Negative Nextafter Node NonNeg Nonzero Norm
    Normalization Normalize NotEqual OneHot OneHotIoU OneHotMeanIoU Ones OnesLike Operation Optimizer OptimizerMap
    Orthogonal OrthogonalInitializer OrthogonalRegularizer Outer PReLU PSNR Pad PadImages PearsonCorrelation
    Percentile Permute PerspectiveTransform PiecewiseConstantDecay Pinv Pipeline Poisson Polar Policy
    PolynomialDecay Power Precision PrecisionAtRecall PreprocessingLayer Prod Ptp PyMetric Qr Quantile
    QuantizationConfig QuantizedDTypePolicy QuantizedFloat8DTypePolicy Quantizer R2Score RFFT RGBToGrayscale
    RGBToHSV RMSNorm RMSNormalization RMSprop RNN Rad2deg RadialConstraint RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform RandomErasing
    RandomFlip RandomFourierFeatures RandomGaussianBlur RandomGrayscale RandomHeight RandomHue RandomInvert
    RandomNormal RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
    RandomTranslation RandomUniform RandomWidth RandomZoom Ravel ReLU Real Rearrange Recall RecallAtPrecision
    Reciprocal Reduction Regularizer Relu Relu6 RematScope Repeat RepeatVector Rescaling Reshape Resize Resizing
    ReversibleEmbedding RightShift Roll RootMeanSquaredError Rot90 Round Rsqrt SGD SSIM STFT STFTInitializer
    STFTSpectrogram SVD SaturateCast ScaleAndTranslate Scatter ScatterUpdate ScheduleFreeAdamW SearchSorted
    SeedGenerator SegmentMax SegmentMin SegmentProd SegmentReduction SegmentSum Select Selu
    SensitivityAtSpecificity SeparableConv SeparableConv1D SeparableConv2D SeparableConvolution1D
    SeparableConvolution2D Sequential SharpnessAwareMinimization Sigmoid Sign Signbit Silu SimpleRNN SimpleRNNCell
    Sin Sinc Sinh Size Slice SliceUpdate Slogdet SobelEdges SoftShrink Softmax Softplus Softsign Solarization
    Solve SolveTriangular Sort SpaceToDepth SparseCategoricalAccuracy SparseCategoricalCrossentropy SparsePlus
    SparseSigmoid SparseTopKCategoricalAccuracy Sparsemax SpatialDropout1D SpatialDropout2D SpatialDropout3D
    SpecificityAtSensitivity SpectralNormalization Split Sqrt Square SquaredHinge Squareplus Squeeze Stack
    StackedRNNCells StatelessScope Std StochasticDepth StopGradient StringLookup Subtract Sum Swapaxes
    SymbolicArguments SymbolicScope SyncBatchNormalization Take TakeAlongAxis Tan Tanh TanhShrink Tensordot
    TextVectorization Threshold ThresholdedReLU Tile TimeDistributed TopK TopKCategoricalAccuracy Trace Transpose
    Trapezoid Tri Tril Triu TrueDivide TrueNegatives TruePositives Trunc TruncatedNormal Tversky Unfold Unique
    UnitNorm UnitNormalization UnravelIndex Unstack UpSampling1D UpSampling2D UpSampling3D Vander Var
    VarianceScaling Vdot View ViewAsComplex ViewAsReal Vsplit Vstack Where WideDeepModel Wrapper ZeroPadding1D
    ZeroPadding2D ZeroPadding3D Zeros ZerosLike
    """.split()  # noqa: SIM905
)

FUNCTIONS: Final = frozenset(
    """
    KLD MAE MAPE MSE MSLE binary_accuracy binary_crossentropy binary_focal_crossentropy categorical_accuracy
    categorical_crossentropy categorical_focal_crossentropy categorical_generalized_cross_entropy
    categorical_hinge celu circle concordance_correlation cosine cosine_proximity cosine_similarity ctc dice elu
    exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh hinge huber kl_divergence kld
    kullback_leibler_divergence leaky_relu linear log_cosh log_sigmoid log_softmax logcosh mae mape
    mean_absolute_error mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error mish mse
    msle pearson_correlation poisson relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign
    sparse_categorical_accuracy sparse_categorical_crossentropy sparse_plus sparse_sigmoid
    sparse_top_k_categorical_accuracy sparsemax squared_hinge squareplus swish tanh tanh_shrink threshold
    top_k_categorical_accuracy tversky
    """.split()  # noqa: SIM905
)
