"""Measure the model on questions that were written by hand and never trained on.

    python recipes/helpdesk/evaluate.py --model src/steelyard/data/helpdesk

A question counts as right when the greedy answer, read through transformers in float32, equals the fixed
answer of its intent character for character. Fails when a question stands in the training set.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from dialogues import HERE, OUT_OF_SCOPE, HelpDesk, Turn
from train import STEPS, training_dialogues
from transformers import AutoModelForCausalLM, AutoTokenizer

UNKNOWN_ANSWER = "(no known answer)"
MAX_NEW_TOKENS = 96
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Result:
    """A question with its intent, and the intent whose answer came back."""

    turn: Turn
    answered: str


def read_questions(path: Path) -> list[Turn]:
    """The questions of a JSON Lines file with the keys `intent` and `question`."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Turn(record["question"], record["intent"]) for record in records]


def words(text: str) -> tuple[str, ...]:
    """The words of a sentence, without case and punctuation."""
    return tuple(WORD.findall(text.casefold()))


def check_unseen(questions: Iterable[Turn], desk: HelpDesk, steps: int) -> None:
    """Raise ValueError when a question, word for word, is among the training questions."""
    dialogues = training_dialogues(desk, steps)
    trained = {words(turn.question) for dialogue in dialogues for turn in dialogue.turns}
    seen = [turn.question for turn in questions if words(turn.question) in trained]
    if seen:
        raise ValueError(f"{len(seen)} questions are in the training set, so they measure nothing: {seen}")


@torch.inference_mode()
def ask(folder: Path, questions: list[Turn], desk: HelpDesk, system: str | None) -> list[Result]:
    """Answer each question on its own, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    intents = {answer: intent for intent, answer in desk.answers.items()}
    results = []
    for turn in questions:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": turn.question})
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        output = model.generate(  # type: ignore[misc]  # its self type leaves out AutoModel's
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=MAX_NEW_TOKENS
        )
        answer = str(tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True))
        results.append(Result(turn, intents.get(answer, UNKNOWN_ANSWER)))
    return results


def rate(results: list[Result]) -> str:
    """Share of right answers, as text."""
    right = sum(result.answered == result.turn.intent for result in results)
    return f"{right}/{len(results)} ({right / len(results):.1%})"


def report(results: list[Result], show_misses: bool) -> None:
    """Print the figures, then each intent with what its misses were taken for."""
    known = [result for result in results if result.turn.intent != OUT_OF_SCOPE]
    foreign = [result for result in results if result.turn.intent == OUT_OF_SCOPE]
    declined = sum(result.answered == OUT_OF_SCOPE for result in known)
    garbled = sum(result.answered == UNKNOWN_ANSWER for result in results)
    print(f"all questions          {rate(results)}")
    print(f"in scope, answered     {rate(known)}")
    print(f"out of scope, declined {rate(foreign)}")
    print(f"in scope but declined  {declined}/{len(known)}")
    print(f"not a known answer     {garbled}/{len(results)}")
    for intent in dict.fromkeys(result.turn.intent for result in results):
        own = [result for result in results if result.turn.intent == intent]
        misses = Counter(result.answered for result in own if result.answered != intent)
        print(f"  {intent:18} {rate(own):16} {', '.join(f'{name} x{n}' for name, n in misses.most_common())}")
    if show_misses:
        for result in results:
            if result.answered != result.turn.intent:
                print(f"  {result.turn.intent} -> {result.answered}: {result.turn.question}")


def main() -> None:
    """Check that the questions are unseen, ask them and print the figures."""
    parser = argparse.ArgumentParser(description="Measure the demonstration model on unseen questions.")
    parser.add_argument("--model", type=Path, required=True, help="folder with the model")
    parser.add_argument("--questions", type=Path, default=HERE / "heldout.jsonl", help="JSON Lines file")
    parser.add_argument("--system", help="system prompt to put before each question")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps the model was trained for")
    parser.add_argument("--show-misses", action="store_true", help="for the development set only")
    arguments = parser.parse_args()

    desk = HelpDesk()
    questions = read_questions(arguments.questions)
    check_unseen(questions, desk, arguments.steps)
    report(ask(arguments.model, questions, desk, arguments.system), arguments.show_misses)


if __name__ == "__main__":
    main()
