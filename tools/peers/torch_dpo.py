"""A DPO step the TRL way in PyTorch, against `silkie bench step` on the same weights and record.

Every pair is two rows of their own, chosen rows first, padded on the right, one policy forward and one
adapter-off reference forward (vision in both), full logits, log_softmax over the vocabulary: what trl
0.7.2's DPOTrainer does with Qwen-VL. First loss and LoRA gradients must agree, then both are timed in
turns (A B A B …), each in a process of its own.

    python tools/peers/torch_dpo.py --silkie target/release/silkie              # four responses, six pairs
    python tools/peers/torch_dpo.py --silkie target/release/silkie --pairs lone # one pair
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen_vl import IMAGE_MEAN, IMAGE_STD, Lora, load, load_adapter, sigmoid_loss

# Without it glibc gives every large tensor back to the system and takes it again: 49 s a record step instead of 30.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "THP_MEM_ALLOC_ENABLE": "1"}
GRADIENT_BOUND = 1e-3  # of the tensor's largest element; both sides round in f32
LOSS_BOUND = 1e-4


class Peer:
    """The exported model, adapter and record, and one optimizer step over its pairs."""

    def __init__(self, export: Path, micro: int, compiled: bool):
        batch = load_file(export / "batch.safetensors")  # everything in f32
        self.batch, self.micro = {n: t if n == "images" else t.long() for n, t in batch.items()}, micro
        self.facts = json.loads((export / "step.json").read_text())
        model = load(self.facts["model"])
        self.adapter = load_adapter(model, export / "adapter")
        self.model = torch.compile(model) if compiled else model
        self.optimizer = torch.optim.AdamW(self.adapter.values(), lr=1e-5, betas=(0.9, 0.98), weight_decay=0.05)
        mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
        self.pixels = ((self.batch["images"] / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    def rows(self, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, labels, pixels) of the chosen, then the rejected sequences of `pairs`, padded alike."""
        trunk, sequences, labels = self.batch["trunk"], [], []
        for branch in pairs.T.flatten().tolist():
            sequences.append(torch.cat((trunk, self.batch[f"branch{branch}.ids"])))
            labels.append(torch.cat((torch.full_like(trunk, -100), self.batch[f"branch{branch}.labels"])))
        pad = lambda rows, value: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)  # noqa: E731
        return pad(sequences, 0), pad(labels, -100), self.pixels.repeat(len(sequences), 1, 1, 1)

    def log_probs(self, ids: Tensor, labels: Tensor, pixels: Tensor) -> Tensor:
        """Summed log-probs [pairs, 2] by way of all logits, as trl takes them."""
        targets, mask = labels[:, 1:].clamp(min=0), labels[:, 1:] != -100
        logits = self.model(ids, pixels)[:, :-1].log_softmax(-1)
        per_token = logits.gather(2, targets[..., None])[..., 0]
        return (per_token * mask).sum(-1).view(2, -1).T

    def loss(self) -> float:
        """Mean loss over all pairs; gradients are left in the adapter."""
        total, pairs = 0.0, self.batch["pairs"]
        for part in pairs.split(self.micro):
            rows = self.rows(part)
            Lora.on = False
            with torch.inference_mode():
                reference = self.log_probs(*rows)
            Lora.on = True
            losses = sigmoid_loss(self.log_probs(*rows), reference.clone(), self.facts["beta"])
            (losses.sum() / len(pairs)).backward()
            total += float(losses.sum()) / len(pairs)
        return total

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss()
        self.optimizer.step()


def peak_bytes() -> int:
    """VmHWM of this process."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def child(options: argparse.Namespace) -> None:
    """The PyTorch side, in its own process; prints one JSON object."""
    torch.set_num_threads(options.threads)
    peer = Peer(options.child, options.micro, options.compile)
    if options.check:
        loss = peer.loss()
        save_file({n: p.grad.contiguous() for n, p in peer.adapter.items()}, options.child / "torch_grads.safetensors")
        print(json.dumps({"loss": loss}))
        return
    for _ in range(options.warmup):
        peer.step()
    times = []
    for _ in range(options.steps):
        begin = time.perf_counter()
        peer.step()
        times.append(1e3 * (time.perf_counter() - begin))
    print(json.dumps({"ms_per_step": statistics.median(times), "peak_bytes": peak_bytes()}))


def run(command: list[str], environment: dict[str, str] | None = None) -> dict:
    """Runs a command and reads the JSON object on its last line."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}))
    if done.returncode:
        sys.exit(f"torch_dpo: {' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def check(export: Path, torch_loss: float) -> dict:
    """Compares loss and LoRA gradients; ends the program when they differ."""
    ours, theirs = load_file(export / "grads.safetensors"), load_file(export / "torch_grads.safetensors")
    if ours.keys() != theirs.keys():
        sys.exit(f"torch_dpo: gradients of other tensors: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    worst = max(float((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp(min=1e-30)) for n in ours)
    loss = json.loads((export / "step.json").read_text())["loss"]
    facts = {"loss": loss, "torch_loss": torch_loss, "worst_gradient_difference": worst, "tensors": len(ours)}
    print(json.dumps(facts))
    if abs(loss - torch_loss) > LOSS_BOUND or worst > GRADIENT_BOUND:
        sys.exit("torch_dpo: the two sides do not compute the same thing; nothing was timed")
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silkie", type=Path, default=Path("target/release/silkie"))
    parser.add_argument("--pairs", choices=("record", "lone"), default="record")
    parser.add_argument("--model", type=Path, help="an HF directory instead of the preset small")
    parser.add_argument("--micro", type=int, default=2, help="pairs per forward [2, the published run's]")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=3, help="timed steps per turn")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="keep: freed memory is kept [keep]")
    parser.add_argument("--out", type=Path, help="write the result there as JSON")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "export"
        bench = [str(options.silkie), "bench", "step", "--json", "--pairs", options.pairs]
        model = ["--model", str(options.model)] if options.model else []
        run([*bench, *model, "--export", str(export)])
        facts = json.loads((export / "step.json").read_text())
        bench += ["--model", facts["model"], "--steps", str(options.steps), "--warmup", str(options.warmup)]
        torch_side = [sys.executable, __file__, "--child", str(export), "--micro", str(options.micro)]
        torch_side += ["--threads", str(options.threads), "--steps", str(options.steps)]
        torch_side += ["--warmup", str(options.warmup)] + ["--compile"] * options.compile
        result = check(export, run([*torch_side, "--check"])["loss"])
        environment = KEEP_MEMORY if options.allocator == "keep" else {}
        ours, theirs = [], []
        for turn in range(options.rounds):
            ours.append(run(bench))
            theirs.append(run(torch_side, environment))
            for name, side in (("silkie", ours), ("torch", theirs)):
                ms, peak = side[-1]["ms_per_step"], side[-1]["peak_bytes"] / 2**20
                print(f"turn {turn + 1}  {name:<7} {ms:9.0f} ms/step  {peak:7.0f} MiB")
    median = lambda side, key: statistics.median(x[key] for x in side)  # noqa: E731
    result |= {name: getattr(options, name) for name in ("pairs", "micro", "threads", "compile", "allocator")}
    result |= {"torch": torch.__version__}
    for key in ("ms_per_step", "peak_bytes"):
        result |= {f"silkie_{key}": median(ours, key), f"torch_{key}": median(theirs, key)}
        result[f"{key}_ratio"] = result[f"torch_{key}"] / result[f"silkie_{key}"]
    print(f"silkie is {result['ms_per_step_ratio']:.2f}x as fast, in 1/{result['peak_bytes_ratio']:.2f} of the memory")
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
