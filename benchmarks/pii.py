"""Recall, precision and speed of the privacy shield's detector, with Presidio beside it if a Python with it is named.

python benchmarks/pii.py SYNTH_DATASET_V2.json [--presidio PYTHON]

The set is presidio-research's (MIT). A gold span counts as found when any hit overlaps it, a hit as right when it
overlaps any gold span, so the kind of a hit is not judged. Both halves of a fixed random split are reported;
neither is held out, for the rules were written with sight of the set. Give generated_large.json for another view.
"""

import argparse
import json
import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

STRUCTURED = {"CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "PHONE_NUMBER", "DOMAIN_NAME",
              "ZIP_CODE", "US_DRIVER_LICENSE"}  # fmt: skip
NAMES = {"person", "address", "PERSON"}
FLOORS = {"structured recall": 0.97, "structured precision": 0.98, "PERSON recall": 0.85}
_PRESIDIO = """
import json, sys, time
from presidio_analyzer import AnalyzerEngine
from presidio_analyzer.nlp_engine import SpacyNlpEngine
import spacy
class Blank(SpacyNlpEngine):
    def __init__(self):
        super().__init__()
        self.nlp = {"en": spacy.blank("en")}
engine = AnalyzerEngine(nlp_engine=Blank())
out, texts = [], json.load(sys.stdin)
started = time.perf_counter()
for text in texts:
    out.append([(r.start, r.end, r.entity_type) for r in engine.analyze(text, language="en")])
print(json.dumps([time.perf_counter() - started, out]))
"""

Found = list[tuple[int, int, str]]


def ours(texts: list[str]) -> tuple[float, list[Found]]:
    from steelyard.privacy.detect import Detector

    detector = Detector()
    started = time.perf_counter()
    found = [[(hit.start, hit.end, hit.kind) for hit in detector.find(text)] for text in texts]
    return time.perf_counter() - started, found


def presidio(python: str, texts: list[str]) -> tuple[float, list[Found]]:
    ran = subprocess.run(
        [python, "-c", _PRESIDIO], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    seconds, found = json.loads(ran.stdout.splitlines()[-1])
    return seconds, found


def scores(rows: list[dict], found: list[Found]) -> dict[str, float]:
    """Recall and precision of structured classes and of PERSON."""
    total, hit = {"s": 0, "p": 0}, {"s": 0, "p": 0}
    made, right = {"s": 0, "p": 0}, {"s": 0, "p": 0}
    for row, hits in zip(rows, found, strict=True):
        gold = [(s["start_position"], s["end_position"], s["entity_type"]) for s in row["spans"]]
        for start, end, kind in gold:
            group = "s" if kind in STRUCTURED else "p" if kind == "PERSON" else None
            if group:
                total[group] += 1
                hit[group] += any(a < end and b > start for a, b, _ in hits)
        for start, end, kind in hits:
            group = "p" if kind in NAMES else "s"
            made[group] += 1
            right[group] += any(a < end and b > start for a, b, _ in gold)
    return {
        "structured recall": hit["s"] / total["s"],
        "structured precision": right["s"] / max(1, made["s"]),
        "PERSON recall": hit["p"] / total["p"],
        "PERSON precision": right["p"] / max(1, made["p"]),
    }


def hard_negatives(rng: random.Random, count: int = 100) -> list[str]:
    """Numbers of a business that are nobody's data."""

    def digits(n: int) -> str:
        return "".join(str(rng.randrange(10)) for _ in range(n))

    def letter() -> str:
        return rng.choice("ABCDEFGHKLMNPRSTUVWXYZ")

    makers = [
        lambda: f"policy no {letter()}{letter()}-{digits(8)}",
        lambda: f"invoice 2026-{digits(7)}",
        lambda: f"order id {digits(12)}",
        lambda: f"ICD code {letter()}{digits(2)}.{digits(1)}",
        lambda: f"due on {rng.randint(1, 28):02d}.{rng.randint(1, 12):02d}.2026",
        lambda: f"price {digits(2)},{digits(3)}.{digits(2)} EUR",
        lambda: f"sha256 {rng.getrandbits(256):064x}",
        lambda: f"request {uuid.UUID(int=rng.getrandbits(128))}",
        lambda: f"version {rng.randint(1, 20)}.{rng.randint(0, 40)}.{rng.randint(0, 9)}",
        lambda: f"part {letter()}{digits(16)}",
        lambda: f"claim {digits(3)}/{digits(6)}/{digits(2)}",
        lambda: f"loss ratio {digits(2)}.{digits(4)} in {digits(5)} exposure years",
    ]
    return [f"see {make()} in the file" for make in makers for _ in range(count)]


def speed() -> None:
    from steelyard.privacy.detect import Detector

    detector = Detector()
    clean = "please tell me whether the policy covers damage to the roof after a storm and how to report it. "
    hits = "please call 212-736-5000 or write to jane.doe@example.org about the claim, thanks a lot for it. "
    for name, base, size in (
        ("1 kB, no hits", clean, 1000),
        ("4 kB, no hits", clean, 4000),
        ("4 kB, hits", hits, 4000),
    ):
        text = (base * 60)[:size]
        detector.find(text)
        times = []
        for _ in range(200):
            started = time.process_time_ns()
            detector.find(text)
            times.append(time.process_time_ns() - started)
        median = sorted(times)[100] / 1000
        print(f"{name}: {median:.0f} us CPU, {size / median:.1f} MB/s (median of 200)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--presidio", metavar="PYTHON")
    args = parser.parse_args()
    rows = json.loads(args.dataset.read_text())
    texts = [row["full_text"] for row in rows]
    order = list(range(len(rows)))
    random.Random(5).shuffle(order)
    halves = {"all": order, "half A": order[: len(order) // 2], "half B": order[len(order) // 2 :]}
    runs = {"steelyard": ours(texts)}
    if args.presidio:
        runs["presidio (no NER model)"] = presidio(args.presidio, texts)
    for name, (seconds, found) in runs.items():
        print(f"{name}: {sum(map(len, texts)) / seconds / 1e6:.3f} MB/s on the set")
        for half, numbers in halves.items():
            of = scores([rows[n] for n in numbers], [found[n] for n in numbers])
            print(f"  {half}: " + ", ".join(f"{key} {value:.3f}" for key, value in of.items()))
    negatives = hard_negatives(random.Random(7))
    wrong = [kind for hits in ours(negatives)[1] for _, _, kind in hits]
    print(f"hard negatives: {len(wrong)} hits in {len(negatives)} texts {sorted(set(wrong))}")
    speed()
    of = scores(rows, runs["steelyard"][1])
    missed = [key for key, floor in FLOORS.items() if of[key] < floor]
    print("floors missed: " + (", ".join(missed) or "none"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
