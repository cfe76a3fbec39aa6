"""Qwen-VL in plain PyTorch, f32: the oracle behind the made-up goldens and the body of the speed peer.

Written from the formulas in goldens/README.md, section 2. Parameters carry the names of the real
checkpoint, so `load` is `load_state_dict` and nothing is renamed. Shapes: B rows, T tokens, N
patches, Q image slots, D hidden, W vision width.

`check_goldens.py` beside it holds it against a folder of goldens.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
VISION_EPS = 1e-6


class Trace(dict):
    """Intermediate results by name; `None` in its place records nothing."""


def note(trace: Trace | None, name: str, value: Tensor) -> None:
    """Keeps `value` under `name` when somebody asked for a trace."""
    if trace is not None:
        trace[name] = value.detach()


def resize_positions(table: Tensor, count: int) -> Tensor:
    """A [g*g, C] table read on a grid of `count` = t*t places: bicubic a = -0.75, no antialias."""
    source, target = math.isqrt(len(table)), math.isqrt(count)
    if source == target:
        return table
    grid = table.T.reshape(1, -1, source, source)
    grid = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T


class VisionAttention(nn.Module):
    """Full attention whose in_proj is interleaved by head: heads x (q, k, v) x head_dim."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.in_proj(x).unflatten(-1, (self.heads, 3, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(*qkv.unbind(3))
        return self.out_proj(y.transpose(1, 2).flatten(2))


class VisionBlock(nn.Module):
    """x += attn(ln_1 x); x += c_proj(gelu(c_fc(ln_2 x)))."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=VISION_EPS)
        self.attn = VisionAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=VISION_EPS)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, mlp_width), "c_proj": nn.Linear(mlp_width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Resampler(nn.Module):
    """Learned queries read the patches once: [B, N, W] -> [B, Q, D]. Positions go to q and k, not to v."""

    def __init__(self, queries: int, width: int, hidden: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, hidden))
        self.pos_embed = nn.Parameter(torch.empty(queries, hidden))
        self.kv_proj = nn.Linear(width, hidden, bias=False)
        self.ln_q = nn.LayerNorm(hidden, eps=VISION_EPS)
        self.ln_kv = nn.LayerNorm(hidden, eps=VISION_EPS)
        self.attn = nn.MultiheadAttention(hidden, max(1, hidden // 128), batch_first=True)

    def forward(self, x: Tensor, trace: Trace | None) -> Tensor:
        kv = self.ln_kv(self.kv_proj(x))
        positions = resize_positions(self.pos_embed, x.shape[1])
        note(trace, "resampler_ln_kv", kv)
        note(trace, "resampler_pos_kv", positions)
        q = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        y = self.attn(q, kv + positions, kv, need_weights=False)[0]
        note(trace, "resampler_out", y)
        return y


class Vision(nn.Module):
    """[B, 3, S, S] normalised pixels -> [B, Q, D]."""

    def __init__(self, spec: dict):
        super().__init__()
        width, hidden, patch = spec["width"], spec["output_dim"], spec["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(256, width))
        self.ln_pre = nn.LayerNorm(width, eps=VISION_EPS)
        block = (width, spec["heads"], int(width * spec["mlp_ratio"]))
        blocks = nn.ModuleList(VisionBlock(*block) for _ in range(spec["layers"]))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.attn_pool = Resampler(spec.get("n_queries", 256), width, hidden)
        self.ln_post = nn.LayerNorm(hidden, eps=VISION_EPS)
        self.proj = nn.Parameter(torch.empty(hidden, hidden))

    def forward(self, pixels: Tensor, trace: Trace | None = None) -> Tensor:
        x = self.conv1(pixels)
        note(trace, "conv1", x)
        x = x.flatten(2).transpose(1, 2)
        positions = resize_positions(self.positional_embedding, x.shape[1])
        note(trace, "pos_interp", positions)
        x = self.ln_pre(x + positions)
        note(trace, "ln_pre", x)
        for i, block in enumerate(self.transformer["resblocks"]):
            x = block(x)
            note(trace, f"block.{i}", x)
        y = self.ln_post(self.attn_pool(x, trace)) @ self.proj
        note(trace, "final", y)
        return y


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


@dataclass
class Context:
    """What every decoder layer needs to know about the tokens at hand."""

    cos: Tensor  # [T, head_dim]
    sin: Tensor  # [T, head_dim]
    query_scale: Tensor  # [T, 1], logn
    cache: list[tuple[Tensor, Tensor]] | None  # keys and values so far, one pair per layer


def rotate(x: Tensor, context: Context) -> Tensor:
    """Half-split rotary embedding of [..., T, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * context.cos + torch.cat((-second, first), dim=-1) * context.sin


class Attention(nn.Module):
    """Causal attention; c_attn gives q | k | v."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(hidden, 3 * hidden)
        self.c_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, layer: int, context: Context) -> Tensor:
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        q, k = rotate(q, context) * context.query_scale, rotate(k, context)
        if context.cache is not None:
            if layer < len(context.cache):
                k, v = (torch.cat(pair, dim=-2) for pair in zip(context.cache[layer], (k, v)))
                context.cache[layer] = (k, v)
            else:
                context.cache.append((k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[-2] > 1)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x += attn(rms x); y = rms x; x += c_proj(w1 y * silu(w2 y))."""

    def __init__(self, hidden: int, heads: int, mlp_width: int, eps: float):
        super().__init__()
        self.ln_1 = RmsNorm(hidden, eps)
        self.attn = Attention(hidden, heads)
        self.ln_2 = RmsNorm(hidden, eps)
        linear = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
        self.mlp = nn.ModuleDict(
            {"w1": linear(hidden, mlp_width), "w2": linear(hidden, mlp_width), "c_proj": linear(mlp_width, hidden)}
        )

    def forward(self, x: Tensor, layer: int, context: Context) -> Tensor:
        x = x + self.attn(self.ln_1(x), layer, context)
        y = self.ln_2(x)
        return x + self.mlp["c_proj"](self.mlp["w1"](y) * F.silu(self.mlp["w2"](y)))


class QwenVL(nn.Module):
    """The whole network. `eval`/`train` of nn.Module mean nothing here: the mode is an argument."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        hidden, heads, eps = config["hidden_size"], config["num_attention_heads"], config["layer_norm_epsilon"]
        block = (hidden, heads, config["intermediate_size"] // 2, eps)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config["vocab_size"], hidden),
                "h": nn.ModuleList(Block(*block) for _ in range(config["num_hidden_layers"])),
                "ln_f": RmsNorm(hidden, eps),
                "visual": Vision(config["visual"]),
            }
        )
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)

    def ntk_alpha(self, length: int) -> int:
        """The alpha an eval-mode call on `length` tokens uses."""
        return max(2 ** math.ceil(math.log2(length / self.config["seq_length"]) + 1) - 1, 1)

    def context(self, start: int, end: int, alpha: float, logn: bool, cache: list | None) -> Context:
        """Rotary tables and logn factors of positions start..end."""
        d = self.config["hidden_size"] // self.config["num_attention_heads"]
        base = self.config["rotary_emb_base"] * alpha ** (d / (d - 2))
        frequencies = 1.0 / (base ** (torch.arange(0, d, 2).float() / d))
        angles = torch.outer(torch.arange(end).float(), frequencies)[start:].repeat(1, 2)
        limit = self.config["seq_length"]
        scale = [math.log(p + 1, limit) if logn and p + 1 > limit else 1.0 for p in range(start, end)]
        return Context(angles.cos(), angles.sin(), torch.tensor(scale)[:, None], cache)

    def embed(self, ids: Tensor, pixels: Tensor | None, trace: Trace | None = None) -> Tensor:
        """Token embeddings with the slots of the k-th image replaced by the vectors of pixels[k]."""
        x = self.transformer["wte"](ids)
        if pixels is None or len(pixels) == 0:
            return x
        start = self.config["visual"]["image_start_id"]
        begins, ends = (ids == start).nonzero(), (ids == start + 1).nonzero()
        x = x.clone()
        for (row, begin), (_, end), image in zip(begins, ends, self.transformer["visual"](pixels, trace), strict=True):
            x[row, begin + 1 : end] = image
        return x

    def forward(
        self,
        ids: Tensor,
        pixels: Tensor | None = None,
        *,
        alpha: float = 1,
        logn: bool = False,
        cache: list | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of ids [B, T] padded on the right; `pixels` in order of appearance.

        A cache makes `ids` continue what it holds; `[]` starts one.
        """
        start = cache[0][0].shape[-2] if cache else 0
        x = self.embed(ids, pixels)
        note(trace, "embeddings", x)
        context = self.context(start, start + ids.shape[1], alpha, logn, cache)
        for i, block in enumerate(self.transformer["h"]):
            x = block(x, i, context)
            note(trace, f"hidden.{i}", x)
        x = self.transformer["ln_f"](x)
        note(trace, "ln_f", x)
        return self.lm_head(x)

    def forward_eval(self, ids: Tensor, pixels: Tensor | None = None, *, ntk=True, logn=True, **more) -> Tensor:
        """`forward` in the original's eval mode: dynamic NTK and logn beyond seq_length."""
        return self.forward(ids, pixels, alpha=self.ntk_alpha(ids.shape[1]) if ntk else 1, logn=logn, **more)

    @torch.no_grad()
    def greedy(self, prompt: Tensor, pixels: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
        """(tokens [steps], logits [steps, V]); alpha stays the prompt's, as with the original's cache."""
        alpha, cache, ids, rows = self.ntk_alpha(len(prompt)), [], prompt[None], []
        for _ in range(steps):
            rows.append(self.forward(ids, pixels, alpha=alpha, logn=True, cache=cache)[0, -1])
            ids, pixels = rows[-1].argmax()[None, None], None
        return torch.stack(rows).argmax(-1), torch.stack(rows)


class Lora(nn.Module):
    """y = base(x) + scale * B A x while `Lora.on`."""

    on = True

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor, scale: float):
        super().__init__()
        self.base, self.scale = base, scale
        self.lora_A, self.lora_B = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale if Lora.on else y


@contextmanager
def adapter_off():
    """The base model, inside the `with`."""
    Lora.on = False
    try:
        yield
    finally:
        Lora.on = True


def attach_lora(model: QwenVL, tensors: dict[str, Tensor], scale: float) -> dict[str, nn.Parameter]:
    """Freezes the model, wraps the layers named by a PEFT adapter; returns its parameters by PEFT name."""
    model.requires_grad_(False)
    parameters = {}
    for name in sorted(n for n in tensors if n.endswith(".lora_A.weight")):
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        parent, _, leaf = path.rpartition(".")
        parent, pair = model.get_submodule(parent), (name, name.replace("lora_A", "lora_B"))
        layer = Lora(model.get_submodule(path), tensors[pair[0]], tensors[pair[1]], scale)
        setattr(parent, leaf, layer)
        parameters |= zip(pair, (layer.lora_A, layer.lora_B))
    return parameters


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of an HF directory, widened to f32."""
    files = sorted(directory.glob("*.safetensors"))
    return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}


def load(directory: str | Path, config_name: str = "config.json") -> QwenVL:
    """The model of an HF directory (config.json, *.safetensors), in f32."""
    directory = Path(directory)
    with torch.device("meta"):  # no second copy of the weights
        model = QwenVL(json.loads((directory / config_name).read_text()))
    model.load_state_dict(read_weights(directory), assign=True)
    return model


def load_adapter(model: QwenVL, directory: str | Path) -> dict[str, nn.Parameter]:
    """Attaches the PEFT adapter of a folder."""
    spec = json.loads((Path(directory) / "adapter_config.json").read_text())
    return attach_lora(model, load_file(Path(directory) / "adapter_model.safetensors"), spec["lora_alpha"] / spec["r"])


def token_log_probs(logits: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """log p of each scored token (labels != -100, t >= 1) of one sequence [T], in order."""
    rows = (labels[1:] != -100).nonzero()[:, 0]
    return logits[rows].float().log_softmax(-1).gather(1, labels[1:][rows, None])[:, 0]


def picture_names(ids: Tensor, image_start: int) -> list[str]:
    """Names of the pictures in a sequence, read from the bytes in their slots, in order of appearance."""
    names = []
    for begin in (ids == image_start).nonzero()[:, 0].tolist():
        tail = ids[begin + 1 :].tolist()
        names.append(bytes(tail[: next(i for i, t in enumerate(tail) if t > 255)]).decode())
    return names


def sigmoid_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """DPO losses of pairs [n, 2] (chosen, rejected)."""
    h = policy - reference
    return -F.logsigmoid(beta * (h[:, 0] - h[:, 1]))
