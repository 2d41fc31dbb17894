"""Train and write the demonstration help-desk model.

    python recipes/helpdesk/train.py --out src/steelyard/data/helpdesk

Runs on one CPU thread for a fixed number of steps: a second run on the same machine writes the same bytes.
"""

import argparse
import hashlib
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import torch
from dialogues import Dialogue, HelpDesk
from export import write_model
from llama import Llama, Shape
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from vocabulary import ASSISTANT, END, PAD, SYSTEM, USER, train_tokenizer

SEED = 20261122
STEPS = 1600
BATCH = 48
POOL_BATCHES = 32
VOCAB = 2048
TOKENIZER_DIALOGUES = 20_000
PEAK_LR = 2e-3
WARMUP_STEPS = 100
# The first tokens of an answer decide which answer it is; most examples stop there, as the rest follows.
DECISIVE_TOKENS = 6
FULL_ANSWER_SHARE = 0.15
FOLLOWING_WEIGHT = 0.3
# Share of question tokens replaced by any token: the model must not hang on a single word.
NOISE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a dialogue and, for each, the weight of predicting it."""

    ids: list[int]
    weights: list[float]


def training_dialogues(desk: HelpDesk, steps: int) -> Iterator[Dialogue]:
    """The dialogues which a run of that many steps learns from."""
    return islice(desk.dialogues(SEED), steps * BATCH)


def encode(dialogue: Dialogue, desk: HelpDesk, tokenizer: Tokenizer, rng: random.Random) -> Example:
    """The dialogue as the chat template writes it; the last answer is cut short for most examples."""
    ids: list[int] = []
    weights: list[float] = []
    if dialogue.system is not None:
        ids += [SYSTEM, *tokenizer.encode(dialogue.system).ids, END]
    for number, turn in enumerate(dialogue.turns, 1):
        question = tokenizer.encode(turn.question).ids
        if rng.random() < 0.5:
            question = [rng.randrange(VOCAB) if rng.random() < NOISE_SHARE else token for token in question]
        ids += [USER, *question, END, ASSISTANT]
        weights += [0.0] * (len(ids) - len(weights))
        answer = [*tokenizer.encode(desk.answers[turn.intent]).ids, END]
        if number == len(dialogue.turns) and rng.random() >= FULL_ANSWER_SHARE:
            answer = answer[:DECISIVE_TOKENS]
        ids += answer
        weights += [1.0 if at < DECISIVE_TOKENS else FOLLOWING_WEIGHT for at in range(len(answer))]
    return Example(ids, weights)


def batches(examples: Iterator[Example], rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and weights, each (BATCH, length), of dialogues of like length."""
    while pool := list(islice(examples, BATCH * POOL_BATCHES)):
        pool.sort(key=lambda example: len(example.ids))
        starts = list(range(0, len(pool), BATCH))
        rng.shuffle(starts)
        for start in starts:
            yield pad(pool[start : start + BATCH])


def pad(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Ids and weights filled up on the right to the longest example."""
    length = max(len(example.ids) for example in examples)
    ids = [example.ids + [PAD] * (length - len(example.ids)) for example in examples]
    weights = [example.weights + [0.0] * (length - len(example.weights)) for example in examples]
    return torch.tensor(ids), torch.tensor(weights)


def weighted_loss(model: Llama, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of the weighted tokens, in nats."""
    hidden = model.model(ids[:, :-1])
    counted = weights[:, 1:] > 0
    losses = functional.cross_entropy(model.logits(hidden[counted]), ids[:, 1:][counted], reduction="none")
    chosen = weights[:, 1:][counted]
    return (losses * chosen).sum() / chosen.sum()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    warmup = min(WARMUP_STEPS, steps)
    if step < warmup:
        return PEAK_LR * (step + 1) / warmup
    return PEAK_LR * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimiser(model: Llama) -> torch.optim.AdamW:
    """AdamW with decay on the matrices only."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), fused=True)


def train(desk: HelpDesk, tokenizer: Tokenizer, shape: Shape, steps: int) -> Llama:
    """The trained model; a progress line goes to stderr."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    model = Llama(shape)
    optimizer = optimiser(model)
    examples = (encode(dialogue, desk, tokenizer, rng) for dialogue in training_dialogues(desk, steps))
    started = time.monotonic()
    for step, (ids, weights) in enumerate(batches(examples, rng)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = weighted_loss(model, ids, weights)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            elapsed_s = time.monotonic() - started
            eta_s = elapsed_s / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1}/{steps} loss {loss.item():.4f} ETA {eta_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return model


def main() -> None:
    """Train, write the files and print their digests."""
    parser = argparse.ArgumentParser(description="Train and write the demonstration help-desk model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model into")
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer for a test of the recipe")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    desk = HelpDesk()
    tokenizer = train_tokenizer(desk, islice(desk.dialogues(SEED), TOKENIZER_DIALOGUES), VOCAB)
    shape = Shape(vocab=tokenizer.get_vocab_size())
    model = train(desk, tokenizer, shape, arguments.steps)
    for path in write_model(arguments.out, model, shape, tokenizer):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


if __name__ == "__main__":
    main()
