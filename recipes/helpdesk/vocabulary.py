"""The tokenizer: byte-level BPE as in GPT-2, which llama.cpp reads as pre-tokenizer `gpt-2`."""

from collections.abc import Iterable, Iterator

from dialogues import Dialogue, HelpDesk
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
END, PAD, SYSTEM, USER, ASSISTANT = range(5)
# An answer is learnt whole, so its words are worth tokens of their own.
ANSWER_REPEATS = 50


def train_tokenizer(desk: HelpDesk, dialogues: Iterable[Dialogue], size: int) -> Tokenizer:
    """A tokenizer of that many tokens, the special ones first; no normaliser and no post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(desk, dialogues), trainer)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"tokenizer has {tokenizer.get_vocab_size()} tokens, expected {size}")
    return tokenizer


def _texts(desk: HelpDesk, dialogues: Iterable[Dialogue]) -> Iterator[str]:
    for answer in desk.answers.values():
        yield from [answer] * ANSWER_REPEATS
    for dialogue in dialogues:
        if dialogue.system is not None:
            yield dialogue.system
        for turn in dialogue.turns:
            yield turn.question
