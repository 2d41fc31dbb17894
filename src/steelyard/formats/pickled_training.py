"""Settings of a training run in a pickle: the training_args.bin that trainers leave beside the weights.

A dataclass of plain values, enums and a few settings objects; made empty and given its attributes. None of the classes
has a `__setstate__`. `PartialState` of accelerate describes the machine that trained.

Source: transformers 4.20 to 5.23, accelerate 0.20 to 1.x, trl 0.12 and 1.x, sentence-transformers 3 to 5, whose classes
were listed from their syntax trees.
"""

from collections.abc import Mapping

from steelyard.formats.pickle_values import Spec
from steelyard.formats.pickled_estimators import KINDS

_ARGUMENTS = {
    "transformers.training_args": ("TrainingArguments",),
    "transformers.training_args_seq2seq": ("Seq2SeqTrainingArguments",),
    "transformers.trainer_pt_utils": ("AcceleratorConfig",),
    "transformers.generation.configuration_utils": ("GenerationConfig", "CompileConfig"),
    "transformers.generation_utils": ("GenerationConfig",),
    "accelerate.state": ("PartialState", "AcceleratorState"),
    "accelerate.utils.dataclasses": (
        "GradientAccumulationPlugin", "DataLoaderConfiguration", "ProjectConfiguration", "AutocastKwargs",
    ),
    "sentence_transformers.training_args": ("SentenceTransformerTrainingArguments",),
    "sentence_transformers.base.training_args": ("BaseTrainingArguments",),
    "sentence_transformers.sentence_transformer.training_args": ("SentenceTransformerTrainingArguments",),
    "sentence_transformers.cross_encoder.training_args": ("CrossEncoderTrainingArguments",),
    "sentence_transformers.sparse_encoder.training_args": ("SparseEncoderTrainingArguments",),
    "sentence_transformers.multi_vector_encoder.training_args": ("MultiVectorEncoderTrainingArguments",),
    "trl.trainer.base_config": ("_BaseConfig",),
    "trl.trainer.utils": ("OnPolicyConfig",),
    **{
        f"trl.{folder}.{stem}_config": (name,)
        for folder, pairs in {
            "trainer": (
                "sft SFTConfig", "dpo DPOConfig", "kto KTOConfig", "reward RewardConfig", "rloo RLOOConfig",
                "grpo GRPOConfig", "distillation DistillationConfig", "ppo PPOConfig", "ppov2 PPOv2Config",
                "gkd GKDConfig", "cpo CPOConfig", "bco BCOConfig", "orpo ORPOConfig", "nash_md NashMDConfig",
                "online_dpo OnlineDPOConfig", "xpo XPOConfig", "alignprop AlignPropConfig", "ddpo DDPOConfig",
                "prm PRMConfig", "iterative_sft IterativeSFTConfig",
            ),
            "experimental.orpo": ("orpo ORPOConfig",),
            "experimental.cpo": ("cpo CPOConfig",),
            "experimental.gkd": ("gkd GKDConfig",),
            "experimental.online_dpo": ("online_dpo OnlineDPOConfig",),
        }.items()
        for stem, name in (pair.split(" ") for pair in pairs)
    },
}  # fmt: skip
_ENUMS = {
    "transformers.trainer_utils": (
        "IntervalStrategy", "SaveStrategy", "EvaluationStrategy", "HubStrategy", "SchedulerType", "FSDPOption",
        "HPSearchBackend",
    ),
    "transformers.training_args": ("OptimizerNames", "ParallelMode"),
    "transformers.debug_utils": ("DebugOption",),
    "accelerate.utils.dataclasses": (
        "DistributedType", "PrecisionType", "RNGType", "ComputeEnvironment", "DynamoBackend",
        "SageMakerDistributedType",
    ),
    "sentence_transformers.training_args": ("BatchSamplers", "MultiDatasetBatchSamplers"),
    "sentence_transformers.base.sampler": ("BatchSamplers", "MultiDatasetBatchSamplers"),
}  # fmt: skip

TRAINING: Mapping[str, Spec] = {
    **{f"{module}.{name}": KINDS["object"] for module, names in _ARGUMENTS.items() for name in names},
    **{f"{module}.{name}": KINDS["enum"] for module, names in _ENUMS.items() for name in names},
}
