"""Preparing the same records with PIL and tiktoken, timed in turns with `silkie bench prepare`.

One process, one thread, the way a Python pipeline does it: json, the published pair rule, the chat
template piece by piece through tiktoken, Image.open(f).convert("RGB").resize((S, S), BICUBIC), one file of
pixels and ids at the end. Both sides first must agree on what they made (pairs, tokens, pictures).
The figure is records per second of processor time.

    python tools/peers/prepare_peer.py --silkie target/release/silkie --model DIR \
        --records ../shared/data/real-preferences/preferences.jsonl --images ../shared/data/real-preferences
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import unicodedata
from array import array
from pathlib import Path

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SYSTEM = "You are a helpful assistant."
SAME = ("records", "kept", "pairs", "images", "trunk_tokens", "branch_tokens")  # keys both sides must agree on


def tokenizer(model: Path):
    """The original's tiktoken encoding, from the local rank file."""
    import tiktoken

    lines = (model / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    names += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    return tiktoken.Encoding("Qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def score(completion: dict) -> float | None:
    try:
        ratings = [float(aspect["Rating"]) for aspect in completion["annotations"].values()]
        return sum(ratings) / len(ratings)
    except ValueError:
        return None


class Peer:
    def __init__(self, records: Path, images: Path, model: Path):
        config = json.loads((model / "config.json").read_text())["visual"]
        self.records, self.images = records, images
        self.size, self.slots = config["image_size"], config.get("n_queries", 256)
        self.encoding = tokenizer(model)
        self.special = self.encoding._special_tokens

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")

    def turn(self, role: str, pieces: list[int]) -> list[int]:
        start, end = self.special["<|im_start|>"], self.special["<|im_end|>"]
        return [start, *self.encode(role), *self.encode("\n"), *pieces, end, *self.encode("\n")]

    def trunk(self, prompt: str) -> list[int]:
        span = [self.special["<img>"], *[self.special["<imgpad>"]] * self.slots, self.special["</img>"]]
        user = [*self.encode("Picture 1: "), *span, *self.encode("\n" + prompt.strip())]
        return self.turn("system", self.encode(SYSTEM)) + self.turn("user", user)

    def branch(self, answer: str) -> tuple[list[int], list[int]]:
        ids = [*self.turn("assistant", self.encode(answer)), self.special["<|endoftext|>"]]
        labels = list(ids)
        labels[1] = labels[2] = -100
        return ids, labels

    def picture(self, data: bytes) -> bytes:
        from io import BytesIO

        from PIL import Image

        picture = Image.open(BytesIO(data)).convert("RGB")
        return picture.resize((self.size, self.size), Image.BICUBIC).tobytes()

    def round(self) -> dict:
        """Everything once; what was made, and the processor time it took."""
        counts, stored, ids = dict.fromkeys(SAME, 0), {}, array("I")
        wall, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryFile() as out:
            for line in self.records.open(encoding="utf-8"):
                record = json.loads(line)
                counts["records"] += 1
                answers, scores = record["completions"], [score(c) for c in record["completions"]]
                pairs = [
                    (i, j) if a > b else (j, i)
                    for (i, a), (j, b) in itertools.combinations(enumerate(scores), 2)
                    if a is not None and b is not None and a != b
                ]
                if not pairs:
                    continue
                counts["kept"] += 1
                counts["pairs"] += len(pairs)
                trunk = self.trunk(record["prompt"])
                branches = [self.branch(text) for text in dict.fromkeys(c["response"] for c in answers)]
                counts["trunk_tokens"] += len(trunk)
                counts["branch_tokens"] += sum(len(branch) for branch, _ in branches)
                ids.extend(trunk)
                for branch, labels in branches:
                    ids.extend(branch)
                    ids.extend(label & 0xFFFFFFFF for label in labels)
                data = (self.images / record["img_path"]).read_bytes()
                if stored.setdefault(hash(data), counts["kept"]) == counts["kept"]:
                    out.write(self.picture(data))
            ids.tofile(out)
        counts["images"] = len(stored)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return counts | {"cpu_seconds": cpu, "seconds": wall, "records_per_core_second": counts["records"] / cpu}


def silkie(args: argparse.Namespace) -> dict:
    command = [args.silkie, "bench", "prepare", "--json", "--rounds=1", "--threads=1"]
    command += [f"--records={args.records}", f"--images={args.images}", f"--model={args.model}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silkie", help="the binary; without it only the Python side runs")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="config.json and qwen.tiktoken")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    peer, rates = Peer(args.records, args.images, args.model), {"silkie": [], "python": []}
    for n in range(args.rounds):
        made = {"python": peer.round()}
        if args.silkie:
            made["silkie"] = silkie(args)
            differ = [key for key in SAME if made["silkie"][key] != made["python"][key]]
            if differ:
                sys.exit(f"the two made different things: {differ}\n{json.dumps(made, indent=1)}")
        for side, result in made.items():
            rates[side].append(result["records_per_core_second"])
            print(f"round {n} {side:7} {result['cpu_seconds']:.3f} s cpu, {rates[side][-1]:.1f} records/s per core")
    medians = {side: statistics.median(values) for side, values in rates.items() if values}
    ratio = medians["silkie"] / medians["python"] if args.silkie else None
    print(json.dumps({"records_per_core_second": medians, "ratio": ratio}))


if __name__ == "__main__":
    main()
