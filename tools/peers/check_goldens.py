"""Holds qwen_vl.py against a folder of goldens: python tools/peers/check_goldens.py GOLDENS"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qwen_vl import Trace, adapter_off, load, load_adapter, picture_names, sigmoid_loss, token_log_probs


class Check:
    """Collects the worst difference per topic and complains past the bound."""

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, topic: str, got: Tensor, want: Tensor, bound: float, relative: bool = False) -> None:
        worst = float((got.double() - want.double()).abs().max())
        worst /= max(float(want.abs().max()), 1e-30) if relative else 1.0
        ok = got.shape == want.shape and worst <= bound
        self.failed |= not ok
        print(f"{'ok  ' if ok else 'FAIL'} {topic:<40} {worst:9.2e} (bound {bound:.0e})")


def main(goldens: Path) -> None:
    check = Check()
    facts = {p.stem: json.loads(p.read_text()) for p in goldens.glob("*.json")}
    tensors = load_file(goldens / "forward.safetensors")
    model, long = (load(goldens / "tiny-qwen-vl", name) for name in ("config.json", "config_long.json"))
    start = model.config["visual"]["image_start_id"]

    def pixels(ids: Tensor) -> Tensor | None:
        images = [tensors[facts["forward"]["images"][name]] for name in picture_names(ids, start)]
        return torch.stack(images) if images else None

    with torch.no_grad():
        stored = torch.stack([tensors[name] for name in facts["forward"]["images"].values()])
        trace = Trace()
        model.transformer["visual"](stored, trace)
        for name, value in trace.items():
            check(f"vision.{name}", value, tensors[f"vision.{name}"], 1e-4)
        for i in range(len(facts["forward"]["sequences"])):
            ids, trace = tensors[f"seq{i}.input_ids"], Trace()
            logits = model.forward_eval(ids[None], pixels(ids), trace=trace)[0]
            rows = tensors.get(f"seq{i}.logit_positions", torch.arange(len(ids)))
            check(f"seq{i}.logits", logits[rows], tensors[f"seq{i}.logits"], 1e-4)
            for name, value in trace.items():
                if f"seq{i}.{name}" in tensors:
                    check(f"seq{i}.{name}", value[0], tensors[f"seq{i}.{name}"], 1e-4)
        for case in facts["forward"]["long"]["cases"]:
            ids = tensors[f"long.{case}.input_ids"]
            left_over = dict(alpha=long.ntk_alpha(len(ids)))
            modes = {
                "eval": lambda *a: long.forward_eval(*a),
                "train_fresh": lambda *a: long(*a),
                "train_after_eval": lambda *a: long(*a, **left_over),
                "eval_no_ntk": lambda *a: long.forward_eval(*a, ntk=False),
                "eval_no_logn": lambda *a: long.forward_eval(*a, logn=False),
            }
            for mode, run in modes.items():
                if (name := f"long.{case}.{mode}") in tensors:
                    rows = tensors[f"long.{case}.positions"]
                    check(name, run(ids[None], pixels(ids))[0, rows], tensors[name], 1e-4)
        for case, fact in facts["forward"]["greedy"].items():
            prompt, steps = tensors[f"greedy.{case}.prompt_ids"], len(tensors[f"greedy.{case}.tokens"])
            runner = model if fact["config"] == "config.json" else long
            tokens, logits = runner.greedy(prompt, pixels(prompt), steps)
            check(f"greedy.{case}.tokens", tokens, tensors[f"greedy.{case}.tokens"], 0)
            check(f"greedy.{case}.step_logits", logits, tensors[f"greedy.{case}.step_logits"], 1e-4)

    def log_prob(ids: Tensor, labels: Tensor) -> Tensor:
        return token_log_probs(model(ids[None], pixels(ids))[0], ids, labels).sum()

    dpo, facts_dpo = load_file(goldens / "dpo.safetensors"), facts["dpo"]
    sides = ("chosen", "rejected")

    def pair_log_probs() -> Tensor:
        pairs = range(len(facts_dpo["pairs"]))
        rows = [[log_prob(dpo[f"pair{i}.{s}_input_ids"], dpo[f"pair{i}.{s}_labels"]) for s in sides] for i in pairs]
        return torch.stack([torch.stack(row) for row in rows])

    def stored_log_probs(fact: dict, who: str) -> Tensor:
        return torch.tensor([fact[f"{who}_{s}_logps"] for s in sides]).T

    full = facts_dpo["full_dpo"]
    trainable = {n: p for n, p in model.named_parameters() if n in full["trainable"]}
    model.requires_grad_(False)
    for parameter in trainable.values():
        parameter.requires_grad_(True)
    policy = pair_log_probs()
    loss = sigmoid_loss(policy, stored_log_probs(full, "reference"), facts_dpo["beta"]).mean()
    check("full_dpo.policy", policy, stored_log_probs(full, "policy"), 1e-3)
    check("full_dpo.loss", loss, torch.tensor(full["loss_mean"]), 2e-5)
    for name, gradient in zip(trainable, torch.autograd.grad(loss, list(trainable.values()))):
        check(f"full_grad.{name}", gradient, dpo[f"full_grad.{name}"], 1e-4, relative=True)

    adapter, lora = load_adapter(model, goldens / "adapter"), facts_dpo["lora_dpo"]
    with torch.no_grad(), adapter_off():
        reference = pair_log_probs()
    check("lora_dpo.reference", reference, stored_log_probs(lora, "reference"), 1e-3)
    policy = pair_log_probs()
    check("lora_dpo.policy", policy, stored_log_probs(lora, "policy"), 1e-3)
    loss = sigmoid_loss(policy, reference, facts_dpo["beta"]).mean()
    check("lora_dpo.loss", loss, torch.tensor(lora["loss_mean"]), 2e-5)
    for name, gradient in zip(adapter, torch.autograd.grad(loss, list(adapter.values()))):
        check(f"lora_grad.{name}", gradient, dpo[f"lora_grad.{name}"], 1e-4, relative=True)

    records, facts_records = load_file(goldens / "records.safetensors"), facts["records"]

    def response_log_prob(r: int, j: int) -> Tensor:
        prompt = records[f"rec{r}.prompt_input_ids"]
        ids = torch.cat((prompt, records[f"rec{r}.response{j}_input_ids"]))
        labels = torch.cat((torch.full_like(prompt, -100), records[f"rec{r}.response{j}_labels"]))
        return log_prob(ids, labels)

    policy = [
        torch.stack([response_log_prob(r, j) for j in range(len(row))])
        for r, row in enumerate(facts_records["policy_logps"])
    ]
    for got, want in zip(policy, facts_records["policy_logps"]):
        check("records.policy", got, torch.tensor(want), 1e-3)
    pairs = facts_records["pairs_record_chosen_rejected"]
    chosen_rejected = torch.stack([policy[r][[c, j]] for r, c, j in pairs])
    reference = torch.tensor([[facts_records["reference_logps"][r][k] for k in (c, j)] for r, c, j in pairs])
    losses = sigmoid_loss(chosen_rejected, reference, facts_records["beta"])
    check("records.pair_losses", losses, torch.tensor(facts_records["pair_losses"]), 2e-5)
    for name, gradient in zip(adapter, torch.autograd.grad(losses.mean(), list(adapter.values()))):
        check(f"records {name}", gradient, records[f"lora_grad.{name}"], 1e-4, relative=True)
    sys.exit(check.failed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
