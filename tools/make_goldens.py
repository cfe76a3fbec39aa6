"""Writes a folder of goldens of other sizes: same layout as ../shared/goldens, numbers from tools/peers/qwen_vl.py.

    python tools/make_goldens.py --plan odd  --from ../shared/goldens --out /tmp/goldens-odd
    python tools/make_goldens.py --plan bf16 --from ../shared/goldens --out /tmp/goldens-bf16
    SILKIE_GOLDENS=/tmp/goldens-odd cargo test --release

The parts that know no model (tokenizer/, image/, pairs/, the tables of the real checkpoint) are links
to the folder named by --from. Same plan and seed, same machine: same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from qwen_vl import (  # noqa: E402
    IMAGE_MEAN,
    IMAGE_STD,
    QwenVL,
    Trace,
    adapter_off,
    load,
    load_adapter,
    picture_names,
    resize_positions,
    sigmoid_loss,
    token_log_probs,
)

LINKED = ("tokenizer", "image", "pairs", "qwen-vl-chat-config.json", "qwen-vl-chat-tensors.json")
MIN_GREEDY_GAP = 0.01  # below it another machine's rounding may pick another token
SIDES = ("chosen", "rejected")


@dataclass
class Plan:
    """What differs between two folders of goldens."""

    decoder: dict  # keys of config.json
    visual: dict  # keys of config.json's visual
    long_seq_length: int
    weights: torch.dtype
    shards: int  # files the weights are cut into
    lora: tuple[int, int]  # r, alpha
    pictures: list[str]
    sequences: list[list[int]]  # pictures of each
    pairs: list[list[int]]  # pictures of each
    records: list[tuple[int, int]]  # picture, responses
    lora_steps: int
    full_steps: int
    lora_lr: float
    full_lr: float
    beta: float


PLANS = {
    "odd": Plan(
        decoder=dict(hidden_size=256, num_attention_heads=4, num_hidden_layers=2, intermediate_size=2 * 137)
        | dict(vocab_size=777, seq_length=1024, layer_norm_epsilon=1e-5),
        visual=dict(image_size=80, patch_size=5, width=78, heads=3, layers=3, mlp_ratio=4.3637, output_dim=256)
        | dict(image_start_id=701, n_queries=49),
        long_seq_length=48,
        weights=torch.float32,
        shards=1,
        lora=(6, 9),
        pictures=["x.jpg", "déjà/vu 2.png", "c/d/e.webp"],
        sequences=[[1], [2, 0, 1], [], [0]],
        pairs=[[2], [], [1, 0], [0]],
        records=[(1, 4), (0, 2), (1, 5)],
        lora_steps=11,
        full_steps=3,
        lora_lr=2e-4,
        full_lr=1.5e-5,
        beta=0.25,
    ),
    "bf16": Plan(
        decoder=dict(hidden_size=128, num_attention_heads=8, num_hidden_layers=4, intermediate_size=2 * 96)
        | dict(vocab_size=1280, seq_length=2048, rotary_emb_base=25000),
        visual=dict(image_size=102, patch_size=6, width=64, heads=2, layers=1, mlp_ratio=3.77, output_dim=128)
        | dict(image_start_id=1200),
        long_seq_length=80,
        weights=torch.bfloat16,
        shards=3,
        lora=(3, 16),
        pictures=["only.png", "two.jpg"],
        sequences=[[0], [], [1, 0]],
        pairs=[[0], [1]],
        records=[(0, 3), (1, 6)],
        lora_steps=5,
        full_steps=6,
        lora_lr=5e-4,
        full_lr=4e-5,
        beta=0.1,
    ),
}


class Maker:
    """One folder: the plan, the random numbers and what was made so far."""

    def __init__(self, plan: Plan, source: Path, out: Path, seed: int):
        self.plan, self.out = plan, out
        self.random = torch.Generator().manual_seed(seed)
        out.mkdir(parents=True)
        for name in LINKED:
            (out / name).symlink_to((source / name).resolve())
        self.base = json.loads((source / "tiny-qwen-vl" / "config.json").read_text())

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=self.random) * std + mean

    def number(self, low: int, high: int) -> int:
        """low <= n < high."""
        return int(torch.randint(low, high, (), generator=self.random))

    def write(self, name: str, facts: dict, tensors: dict[str, Tensor] | None = None) -> None:
        (self.out / f"{name}.json").write_text(json.dumps(facts, indent=1))
        if tensors:
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, self.out / f"{name}.safetensors")

    # --- weights ---

    def weight(self, name: str, shape: torch.Size) -> Tensor:
        """Random, of a size that keeps activations near one; norms, biases and positions far from trivial."""
        if name.endswith("bias"):
            return self.normal(*shape, std=0.2)
        if ".ln_" in name:
            return self.normal(*shape, std=0.25, mean=1.0)
        if name.endswith(("query", "positional_embedding", "pos_embed", "wte.weight")):
            return self.normal(*shape, std=0.5)
        gain = 2.0 if name == "lm_head.weight" else 1.25 if "c_attn" in name or "in_proj" in name else 0.8
        return self.normal(*shape, std=gain / math.sqrt(math.prod(shape[1:])))

    def make_model(self) -> None:
        folder, plan = self.out / "tiny-qwen-vl", self.plan
        folder.mkdir()
        config = self.base | plan.decoder | {"visual": plan.visual}
        config |= {"kv_channels": config["hidden_size"] // config["num_attention_heads"]}
        if plan.weights == torch.bfloat16:
            config |= {"bf16": True, "fp32": False, "torch_dtype": "bfloat16"}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        (folder / "config_long.json").write_text(json.dumps(config | {"seq_length": plan.long_seq_length}, indent=2))
        shapes = {name: p.shape for name, p in QwenVL(config).named_parameters()}
        weights = {name: self.weight(name, shapes[name]).to(plan.weights) for name in sorted(shapes)}
        if plan.shards == 1:
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        else:
            files = {n: f"model-{i % plan.shards + 1:05}-of-{plan.shards:05}.safetensors" for i, n in enumerate(weights)}
            for file in set(files.values()):
                save_file({n: w for n, w in weights.items() if files[n] == file}, folder / file, {"format": "pt"})
            size = sum(w.numel() * w.element_size() for w in weights.values())
            index = {"metadata": {"total_size": size}, "weight_map": files}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        r, alpha = plan.lora
        spec = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": alpha, "lora_dropout": 0.0}
        spec |= {"target_modules": ["c_attn", "attn.c_proj", "w1", "w2"], "bias": "none", "fan_in_fan_out": False}
        spec |= {"base_model_name_or_path": "", "inference_mode": True, "modules_to_save": None}
        adapter = {}
        for name in sorted(shapes):
            if name.endswith(("c_attn.weight", "attn.c_proj.weight", "w1.weight", "w2.weight")):
                path, (rows, cols) = "base_model.model." + name.removesuffix(".weight"), shapes[name]
                adapter[f"{path}.lora_A.weight"] = self.normal(r, cols, std=1 / math.sqrt(cols))
                adapter[f"{path}.lora_B.weight"] = self.normal(rows, r, std=0.08 * r / alpha)
        (self.out / "adapter").mkdir()
        save_file(adapter, self.out / "adapter" / "adapter_model.safetensors", {"format": "pt"})
        (self.out / "adapter" / "adapter_config.json").write_text(json.dumps(spec, indent=2))

    def fresh(self, config: str = "config.json") -> QwenVL:
        return load(self.out / "tiny-qwen-vl", config)

    # --- token sequences ---

    def words(self, count: int) -> list[int]:
        first_special = self.plan.visual["image_start_id"] - 1  # eos
        return [self.number(0, first_special) for _ in range(count)]

    def image_span(self, picture: int) -> list[int]:
        start, slots = self.plan.visual["image_start_id"], self.plan.visual.get("n_queries", 256)
        name = list(self.plan.pictures[picture].encode())
        return [start, *name, *[start + 2] * (slots - len(name)), start + 1]

    def text_with(self, pictures: list[int]) -> list[int]:
        ids = self.words(self.number(3, 9))
        for picture in pictures:
            ids += self.image_span(picture) + self.words(self.number(4, 14))
        return ids + ([] if pictures else self.words(29))

    def prompt(self, pictures: list[int]) -> list[int]:
        """im_start … im_end \\n, twice, as the chat template goes."""
        start, end = self.plan.visual["image_start_id"] + 3, self.plan.visual["image_start_id"] + 4
        return [start, *self.words(7), end, 198, start, *self.text_with(pictures), end, 198]

    def response(self) -> tuple[list[int], list[int]]:
        """(ids, labels) of im_start assistant \\n ANSWER im_end \\n eos."""
        first = self.plan.visual["image_start_id"]
        rest = [*self.words(self.number(1, 36)), first + 4, 198, first - 1]
        return [first + 3, 555, 198, *rest], [first + 3, -100, -100, *rest]

    def pixels_of(self, ids: Tensor) -> Tensor | None:
        names = picture_names(ids, self.plan.visual["image_start_id"])
        return torch.stack([self.pixels[self.plan.pictures.index(n)] for n in names]) if names else None

    # --- forward ---

    @torch.no_grad()
    def make_forward(self) -> None:
        plan, model, long = self.plan, self.fresh(), self.fresh("config_long.json")
        size, limit = plan.visual["image_size"], plan.long_seq_length
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGE_MEAN, IMAGE_STD))
        raw = torch.randint(0, 256, (len(plan.pictures), 3, size, size), generator=self.random)
        self.pixels = (raw / 255 - mean) / std
        tensors = {f"pixels.{i}": x for i, x in enumerate(self.pixels)}
        trace = Trace()
        model.transformer["visual"](self.pixels, trace)
        tensors |= {f"vision.{name}": value for name, value in trace.items()}
        for count in (9, 256, 29 * 29):
            table = model.transformer["visual"].positional_embedding
            tensors[f"posinterp.to_{count}"] = resize_positions(table, count).clone()
        sequences = []
        for i, pictures in enumerate(plan.sequences):
            ids, trace = torch.tensor(self.text_with(pictures)), Trace()
            logits = model.forward_eval(ids[None], self.pixels_of(ids), trace=trace)[0]
            tensors[f"seq{i}.input_ids"] = ids
            if len(pictures) > 1:
                rows = tensors[f"seq{i}.logit_positions"] = torch.arange(0, len(ids), 3)
                tensors[f"seq{i}.logits"] = logits[rows]
            else:
                tensors[f"seq{i}.logits"] = logits
                tensors |= {f"seq{i}.{name}": value[0] for name, value in trace.items()}
            names = [plan.pictures[p] for p in sorted(set(pictures))]
            facts = {"len": len(ids), "image_names": names, "argmax_last": int(logits[-1].argmax())}
            sequences.append(facts | {"logit_std": float(logits.std())})
        cases, texts = {}, {"exact": limit, "one_more": limit + 1, "thrice": 3 * limit + 5}
        texts = {name: self.words(count) for name, count in texts.items()} | {"picture": self.text_with([0])}
        for case, ids in texts.items():
            ids = torch.tensor(ids)
            rows, alpha = torch.arange(len(ids) % 3, len(ids), 3), long.ntk_alpha(len(ids))
            results = {
                "eval": long.forward_eval(ids[None], self.pixels_of(ids)),
                "train_fresh": long(ids[None], self.pixels_of(ids)),
            }
            if case == "thrice":
                results |= {
                    "eval_no_ntk": long.forward_eval(ids[None], ntk=False),
                    "eval_no_logn": long.forward_eval(ids[None], logn=False),
                    "train_after_eval": long(ids[None], alpha=alpha),
                }
            tensors |= {f"long.{case}.{mode}": logits[0, rows] for mode, logits in results.items()}
            tensors |= {f"long.{case}.input_ids": ids, f"long.{case}.positions": rows}
            cases[case] = {"len": len(ids), "ntk_alpha_eval": alpha}
        greedy = {}
        self.make_greedy(tensors, greedy, "short", model, "config.json", lambda: self.text_with([0, 1]), 9)
        self.make_greedy(tensors, greedy, "cross", long, "config_long.json", lambda: self.words(limit - 7), 21)
        self.make_greedy(tensors, greedy, "long", long, "config_long.json", lambda: self.words(2 * limit + 3), 10)
        images = {name: f"pixels.{i}" for i, name in enumerate(plan.pictures)}
        facts = {"images": images, "sequences": sequences, "long": {"seq_length": limit, "cases": cases}}
        self.write("forward", facts | {"greedy": greedy}, tensors)

    def make_greedy(self, tensors, facts, case, model, config, draw, steps) -> None:
        """Draws prompts until no step is a near tie."""
        gap = 0.0
        while gap < MIN_GREEDY_GAP:
            prompt = torch.tensor(draw())
            tokens, logits = model.greedy(prompt, self.pixels_of(prompt), steps)
            top = logits.topk(2).values
            gap = float((top[:, 0] - top[:, 1]).min())
        parts = {"prompt_ids": prompt, "tokens": tokens, "step_logits": logits}
        tensors |= {f"greedy.{case}.{name}": value for name, value in parts.items()}
        facts[case] = {"min_top1_top2_gap": gap, "tokens": tokens.tolist(), "config": config}

    # --- preference pairs ---

    def log_probs(self, model: QwenVL, sequences: list[tuple[Tensor, Tensor]]) -> Tensor:
        rows = [token_log_probs(model(i[None], self.pixels_of(i))[0], i, labels).sum() for i, labels in sequences]
        return torch.stack(rows)

    def pair_log_probs(self, model: QwenVL) -> Tensor:
        """[pairs, 2]."""
        flat = [(self.dpo[f"pair{i}.{s}_input_ids"], self.dpo[f"pair{i}.{s}_labels"]) for i in self.pair_ids for s in SIDES]
        return self.log_probs(model, flat).view(-1, 2)

    def trainable(self, model: QwenVL) -> dict[str, Tensor]:
        """What run_dpo.py trains without LoRA: the decoder, wte, lm_head and the resampler."""
        frozen = "transformer.visual."
        named = sorted(model.named_parameters())
        model.requires_grad_(False)
        kept = {n: p for n, p in named if not n.startswith(frozen) or n.startswith(frozen + "attn_pool.")}
        return {n: p.requires_grad_(True) for n, p in kept.items()}

    def make_dpo(self) -> None:
        plan, beta = self.plan, self.plan.beta
        self.pair_ids, self.dpo, lengths = range(len(plan.pairs)), {}, []
        for i, pictures in enumerate(plan.pairs):
            prompt = self.prompt(pictures)
            self.dpo[f"pair{i}.prompt_input_ids"] = torch.tensor(prompt)
            fact = {"len_prompt": len(prompt)}
            for side in SIDES:
                ids, labels = self.response()
                self.dpo[f"pair{i}.{side}_input_ids"] = torch.tensor(prompt + ids)
                self.dpo[f"pair{i}.{side}_labels"] = torch.tensor([-100] * len(prompt) + labels)
                fact |= {f"len_{side}": len(prompt + ids), f"n_label_tokens_{side}": sum(x != -100 for x in labels)}
            lengths.append(fact)
        base, lora = self.fresh(), self.fresh()
        adapter = load_adapter(lora, self.out / "adapter")
        trained = self.trainable(base)
        with torch.no_grad():
            for i in self.pair_ids:
                for side in SIDES:
                    ids, labels = self.dpo[f"pair{i}.{side}_input_ids"], self.dpo[f"pair{i}.{side}_labels"]
                    logits = base(ids[None], self.pixels_of(ids))[0]
                    self.dpo[f"pair{i}.base_token_logps_{side}"] = token_log_probs(logits, ids, labels)
        full_policy, lora_policy = self.pair_log_probs(base), self.pair_log_probs(lora)
        tensors, facts = dict(self.dpo), {"beta": beta, "label_pad": -100, "pairs": lengths}
        runs = {
            "lora": (lora_policy, full_policy.detach(), adapter, "grad_norm_all_lora_tensors"),
            "full": (full_policy, lora_policy.detach(), trained, "grad_norm_all_trainable"),
        }
        for kind, (policy, reference, parameters, norm) in runs.items():
            losses, rewards = sigmoid_loss(policy, reference, beta), beta * (policy - reference).detach()
            gradients = torch.autograd.grad(losses.mean(), list(parameters.values()))
            tensors |= {f"{kind}_grad.{n}": g for n, g in zip(parameters, gradients)}
            fact = {f"policy_{s}_logps": policy[:, k].tolist() for k, s in enumerate(SIDES)}
            fact |= {f"reference_{s}_logps": reference[:, k].tolist() for k, s in enumerate(SIDES)}
            fact |= {"losses": losses.tolist(), "loss_mean": float(losses.mean())}
            fact |= {f"{s}_rewards": rewards[:, k].tolist() for k, s in enumerate(SIDES)}
            margin = rewards[:, 0] - rewards[:, 1]
            fact |= {"reward_accuracy": float((margin > 0).float().mean()), "reward_margin_mean": float(margin.mean())}
            facts[f"{kind}_dpo"] = fact | {norm: math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients))}
        facts["full_dpo"] |= {"trainable": sorted(trained)}
        facts["full_dpo"] |= {"frozen": sorted(n for n, _ in base.named_parameters() if n not in trained)}
        facts["sft_cross_entropy_pair0_chosen"] = {"value": -float(self.dpo["pair0.base_token_logps_chosen"].mean())}
        counts = {f"n_{s}": [fact[f"n_label_tokens_{s}"] for fact in lengths] for s in SIDES}
        model_pairs = {f"policy_{s}": facts["lora_dpo"][f"policy_{s}_logps"] for s in SIDES}
        model_pairs |= {f"reference_{s}": facts["lora_dpo"][f"reference_{s}_logps"] for s in SIDES}
        facts["variants_model_pairs"] = counts | {"values": variants(model_pairs | counts)}
        synthetic = self.synthetic_pairs(9)
        facts["variants_synthetic"] = synthetic | {"values": variants(synthetic)}
        facts["images"] = {name: f"forward.safetensors:pixels.{i}" for i, name in enumerate(plan.pictures)}
        self.write("dpo", facts, tensors)
        self.facts_dpo = facts

    def synthetic_pairs(self, count: int) -> dict[str, list[float]]:
        """Log-probs and token counts, the first rows extreme."""
        names = [f"{who}_{s}" for who in ("policy", "reference") for s in SIDES]
        columns = {name: [-500.0 * abs(float(self.normal(()))) for _ in range(count)] for name in names}
        for name, extreme in zip(names, ((-7000.0, -1.0, -70.0), (-1.0, -7000.0, -70.0), (-30.0,) * 3, (-30.0,) * 3)):
            columns[name][:3] = extreme
        return columns | {f"n_{s}": [float(self.number(1, 400)) for _ in range(count)] for s in SIDES}

    # --- records ---

    def make_records(self) -> None:
        plan, tensors, sequences, scores = self.plan, {}, [], []
        for r, (picture, responses) in enumerate(plan.records):
            prompt = self.prompt([picture])
            tensors[f"rec{r}.prompt_input_ids"] = torch.tensor(prompt)
            scores.append([self.number(2, 11) / 2 for _ in range(responses)])
            scores[-1][:2] = [2.5, 4.5]  # at least one pair
            for j in range(responses):
                ids, labels = self.response()
                tensors[f"rec{r}.response{j}_input_ids"] = torch.tensor(ids)
                tensors[f"rec{r}.response{j}_labels"] = torch.tensor(labels)
                sequences.append((torch.tensor(prompt + ids), torch.tensor([-100] * len(prompt) + labels)))
        firsts = [sum(n for _, n in plan.records[:r]) for r in range(len(plan.records))]
        pairs = [
            (r, *((i, j) if row[i] > row[j] else (j, i)))
            for r, row in enumerate(scores)
            for i, j in combinations(range(len(row)), 2)
            if row[i] != row[j]
        ]
        model = self.fresh()
        adapter = load_adapter(model, self.out / "adapter")
        policy = self.log_probs(model, sequences)
        with torch.no_grad(), adapter_off():
            reference = self.log_probs(model, sequences)
        rows = torch.tensor([[firsts[r] + c, firsts[r] + j] for r, c, j in pairs])
        losses = sigmoid_loss(policy[rows], reference[rows], plan.beta)
        wanted = [policy, *adapter.values()]
        d_policy, *gradients = torch.autograd.grad(losses.mean(), wanted)
        by_record = lambda x: [x[f : f + n].tolist() for f, (_, n) in zip(firsts, plan.records)]  # noqa: E731
        facts = {"beta": plan.beta, "mean_scores": scores, "pairs_record_chosen_rejected": pairs}
        facts |= {"policy_logps": by_record(policy), "reference_logps": by_record(reference)}
        facts |= {"pair_losses": losses.tolist(), "loss_mean_over_pairs": float(losses.mean())}
        facts |= {"dloss_dpolicy_logp": by_record(d_policy), "images": [plan.pictures[p] for p, _ in plan.records]}
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients))
        tensors |= {f"lora_grad.{n}": g for n, g in zip(adapter, gradients)}
        self.write("records", facts | {"grad_norm_all_lora_tensors": norm}, tensors)

    # --- AdamW ---

    def make_adamw(self) -> None:
        lora, full = self.fresh(), self.fresh()
        adapter, trained = load_adapter(lora, self.out / "adapter"), self.trainable(full)
        # The rule of the HF trainer: biases and nn.LayerNorm (the resampler's norms) are exempt.
        exempt = [n for n in trained if "bias" in n or "attn_pool.ln_" in n]
        lora_facts, optimizer = self.train(lora, adapter, [], "lora", self.plan.lora_steps, self.plan.lora_lr, 2.0)
        final = {}
        for name, parameter in adapter.items():
            state = optimizer.state[parameter]
            final |= {f"param.{name}": parameter, f"exp_avg.{name}": state["exp_avg"]}
            final[f"exp_avg_sq.{name}"] = state["exp_avg_sq"]
        full_facts, _ = self.train(full, trained, exempt, "full", self.plan.full_steps, self.plan.full_lr, 15.0)
        decay = {"decay": sorted(set(trained) - set(exempt)), "no_decay": sorted(exempt)}
        sums = {n: {"sum": float(p.double().sum()), "l2": float(p.double().norm())} for n, p in trained.items()}
        self.write("adamw", {"lora": lora_facts, "full": full_facts | decay | {"final_checks": sums}})
        save_file({k: v.detach().contiguous() for k, v in final.items()}, self.out / "adamw_final.safetensors")

    def train(self, model, parameters, exempt, kind, total, peak, clip) -> tuple[dict, torch.optim.AdamW]:
        """`total` steps on all pairs; every row is taken before that step's update."""
        references = {f"reference_{s}_logps": self.facts_dpo[f"{kind}_dpo"][f"reference_{s}_logps"] for s in SIDES}
        reference, beta = torch.tensor(list(references.values())).T, self.plan.beta
        warm, betas, decay = math.ceil(0.1 * total), (0.9, 0.98), 0.05
        groups = [
            {"params": [p for n, p in parameters.items() if n not in exempt], "weight_decay": decay},
            {"params": [p for n, p in parameters.items() if n in exempt], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=betas, eps=1e-8)

        def measure() -> tuple[Tensor, dict]:
            policy = self.pair_log_probs(model)
            loss = sigmoid_loss(policy, reference, beta).mean()
            margin = beta * float(((policy - reference)[:, 0] - (policy - reference)[:, 1]).mean())
            fact = {"loss": float(loss), "reward_margin_mean": margin}
            return loss, fact | {f"policy_{s}_logps": policy[:, k].tolist() for k, s in enumerate(SIDES)}

        steps = []
        for k in range(total):
            lr = peak * (k / warm if k < warm else 0.5 * (1 + math.cos(math.pi * (k - warm) / (total - warm))))
            loss, fact = measure()
            optimizer.zero_grad()
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), clip))
            coefficient = min(1.0, clip / (norm + 1e-6))
            steps.append({"step": k + 1, "lr": lr, "grad_norm_before_clip": norm, "clip_coef": coefficient} | fact)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        facts = {"peak_lr": peak, "betas": betas, "eps": 1e-8, "weight_decay": decay, "max_grad_norm": clip}
        facts |= {"total_steps": total, "warmup_steps": warm} | references
        with torch.no_grad():
            return facts | {"steps": steps, "after_last_step": measure()[1]}, optimizer


def variants(pairs: dict[str, list[float]]) -> dict:
    """Every loss of the family on the same pairs, in f64, with its four derivatives."""
    results = {}
    for beta in (0.2, 0.75):
        table = {
            f"sigmoid_beta{beta}": {"beta": beta},
            f"hinge_beta{beta}": {"beta": beta},
            f"ipo_sum_beta{beta}": {"beta": beta},
            f"ipo_mean_beta{beta}": {"beta": beta},
            f"cdpo_beta{beta}_eps0.15": {"beta": beta, "eps": 0.15},
            f"sigmoid_reference_free_beta{beta}": {"beta": beta},
            f"simpo_beta{beta * 10}_gamma0.8": {"beta": beta * 10, "gamma": 0.8},
        }
        for name, params in table.items():
            results[name] = {"params": params} | variant(name.split("_beta")[0], pairs, **params)
    return results


def variant(kind: str, pairs: dict[str, list[float]], beta: float, eps: float = 0.0, gamma: float = 0.0) -> dict:
    """Losses of one kind, one per pair, and their derivatives."""
    names = [f"{who}_{s}" for who in ("policy", "reference") for s in SIDES]
    inputs = [torch.tensor(pairs[n], dtype=torch.float64, requires_grad=True) for n in names]
    pc, pr, rc, rr = inputs
    nc, nr = (torch.tensor(pairs[f"n_{s}"], dtype=torch.float64) for s in SIDES)
    if kind == "ipo_mean":
        pc, pr, rc, rr = pc / nc, pr / nr, rc / nc, rr / nr
    h = (pc - pr) - (rc - rr)
    losses = {
        "sigmoid": lambda: -F.logsigmoid(beta * h),
        "hinge": lambda: F.relu(1 - beta * h),
        "ipo_sum": lambda: (h - 1 / (2 * beta)) ** 2,
        "ipo_mean": lambda: (h - 1 / (2 * beta)) ** 2,
        "cdpo": lambda: -(1 - eps) * F.logsigmoid(beta * h) - eps * F.logsigmoid(-beta * h),
        "sigmoid_reference_free": lambda: -F.logsigmoid(beta * (pc - pr)),
        "simpo": lambda: -F.logsigmoid(beta * (pc / nc - pr / nr) - gamma),
    }[kind]()
    slopes = torch.autograd.grad(losses.sum(), inputs, allow_unused=True, materialize_grads=True)
    return {"loss": losses.tolist()} | {f"d_{n}": g.tolist() for n, g in zip(names, slopes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", choices=PLANS, required=True)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="the recorded goldens")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    maker = Maker(PLANS[options.plan], options.source, options.out, options.seed)
    maker.make_model()
    maker.make_forward()
    maker.make_dpo()
    maker.make_records()
    maker.make_adamw()
    print(f"{options.out}: written")


if __name__ == "__main__":
    main()
