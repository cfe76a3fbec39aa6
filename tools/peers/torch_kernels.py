#!/usr/bin/env python3
"""Times PyTorch's own form of each row of `silkie bench kernels` on the same GPU.

    silkie bench kernels --json | tail -n 1 > kernels.json
    tools/peers/torch_kernels.py --silkie kernels.json --out peers.json

Needs torch that sees the GPU. A row is written as PyTorch's users write it, and what PyTorch has no op for is composed: the residual
is added before the norm, a bias gradient summed after gelu's backward. Attention has several forms, one for each back end of SDPA
and FlexAttention, and the loss has Liger's where its wheel is there; what a form refuses is said. Rows without a counterpart (lora, add_cycled, AdamW with a bf16
copy) are left out. --device cpu is for a look at the program itself.
"""

import argparse
import datetime
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

try:
    from liger_kernel.transformers import functional as liger
except ImportError:
    liger = None

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SAMPLES = 25
FLUSH = 64 << 20  # elements read between two samples: more than any L2 holds


class On:
    """Tensors of a row: its type, its device."""

    def __init__(self, row, device):
        self.row, self.device, self.dtype = row, device, DTYPES[row["dtype"]]
        self.rows, self.cols = row["shape"]

    def make(self, *shape, dtype=None):
        return torch.randn(*shape, device=self.device, dtype=dtype or self.dtype)

    def x(self):
        return self.make(self.rows, self.cols)

    def index(self, limit=None):
        return torch.arange(self.rows, device=self.device).mul(7919).remainder(limit or self.rows)


def gradient(forward, inputs, dy):
    """What autograd does of a forward pass, timed alone."""
    y = forward(*(x.requires_grad_() for x in inputs))
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def rms_norm(on):
    x, residual, dy, weight = on.x(), on.x(), on.x(), on.make(on.cols)
    normalise = lambda x, w=weight: F.rms_norm(x, (on.cols,), w, 1e-6)
    return {
        "forward": lambda: (lambda: normalise(x)),
        "forward + residual": lambda: (lambda: normalise(x + residual)),
        "backward": lambda: gradient(normalise, [x], dy),
        "backward + weight": lambda: gradient(normalise, [x, weight], dy),
    }


def layer_norm(on):
    x, dy, weight, bias = on.x(), on.x(), on.make(on.cols), on.make(on.cols)
    normalise = lambda x, w=weight, b=bias: F.layer_norm(x, (on.cols,), w, b, 1e-6)
    return {
        "forward": lambda: (lambda: normalise(x)),
        "backward": lambda: gradient(normalise, [x], dy),
        "backward + weight, bias": lambda: gradient(normalise, [x, weight, bias], dy),
    }


def activation(on):
    x, b, dy = on.x(), on.x(), on.x()
    swiglu = lambda a, b: a * F.silu(b)
    both = lambda work, more: (lambda: (work(), more()))
    return {
        "gelu": lambda: (lambda: F.gelu(x)),
        "gelu_backward": lambda: gradient(F.gelu, [x], dy),
        "gelu_backward + bias": lambda: both(gradient(F.gelu, [x], dy), lambda: dy.sum(0)),
        "swiglu": lambda: (lambda: swiglu(x, b)),
        "swiglu_backward": lambda: gradient(swiglu, [x, b], dy),
        "swiglu_backward + s": lambda: both(gradient(swiglu, [x, b], dy), lambda: swiglu(x.detach(), b.detach())),
    }


def rope(on, head_dim=128):
    heads = on.cols // head_dim
    qk = on.make(on.rows, 2, heads, head_dim)
    cos, sin = (on.make(on.rows, 1, 1, head_dim) for _ in range(2))

    def turn(sign):
        def work():
            half = torch.cat((-qk[..., head_dim // 2 :], qk[..., : head_dim // 2]), -1)
            return qk * cos + sign * half * sin

        return work

    logn = on.make(on.rows, 1, 1, 1)
    scaled = lambda: turn(1)().select(1, 0) * logn.select(1, 0)
    return {"forward": lambda: turn(1), "forward + logn": lambda: scaled, "backward": lambda: turn(-1)}


def rows(on):
    x, y, index = on.x(), on.x(), on.index()
    f32, factors = x.float(), on.make(on.rows, 1)
    return {
        "gather": lambda: (lambda: x.index_select(0, index)),
        "scatter": lambda: (lambda: y.index_copy_(0, index, x)),
        "scatter_add": lambda: (lambda: y.index_add_(0, index * 3 // 4, x)),
        "scale": lambda: (lambda: x.mul_(factors)),
        "copy": lambda: (lambda: y.copy_(x)),
        "copy to f32": lambda: (lambda: f32.copy_(x)),
        "copy from f32": lambda: (lambda: x.copy_(f32)),
        "add": lambda: (lambda: y.add_(x)),
        "add to f32": lambda: (lambda: f32.add_(x)),
    }


def embedding(on):
    table, features, index, dx = on.x(), on.make((on.rows + 3) // 4, on.cols), on.index(), on.x()
    slots = torch.arange(0, on.rows, 4, device=on.device)
    dtable = on.make(on.rows, on.cols, dtype=torch.float32)

    def splice(table):
        x = F.embedding(index, table).to(on.dtype)
        return x.index_copy_(0, slots, features)

    def backward():
        dtable.index_add_(0, index, dx.float())
        return dx.index_select(0, slots)

    return {
        "forward": lambda: (lambda: splice(table)),
        "forward from f32": lambda: (lambda: splice(dtable)),
        "forward from bf16": lambda: (lambda: splice(table.bfloat16())),
        "backward": lambda: backward,
    }


def column_sums(on):
    x, sums = on.x(), on.make(on.cols, dtype=torch.float32)
    return {"": lambda: (lambda: sums.add_(x.sum(0, dtype=torch.float32)))}


def sampling(on):
    logits = on.make(on.rows, on.cols, dtype=torch.float32)

    def nucleus():
        ordered, ids = torch.sort(torch.softmax(logits / 0.8, -1), descending=True)
        ordered[ordered.cumsum(-1) - ordered > 0.9] = 0
        return ids.gather(-1, torch.multinomial(ordered, 1))

    return {"greedy": lambda: (lambda: logits.argmax(-1)), "nucleus": lambda: nucleus}


def grad_norm(on):
    gradient = on.make(on.cols)
    return {"": lambda: (lambda: torch.nn.utils.get_total_norm([gradient]))}


def adamw(on):
    parameter = on.make(on.cols)
    parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW([parameter], lr=1e-5, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    return {"": lambda: optimizer.step}


BACK_ENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# A tree of the group mask: tokens of its trunk and of each of its branches.
TRUNK, BRANCHES, BRANCH = 340, 4, 100
# Tokens of a sequence, patches of an image, queries of the resampler for each.
SEQUENCE, IMAGE, QUERIES = 2048, 1024, 256


def sdpa(back_end, **options):
    def attend(q, k, v):
        with sdpa_kernel(BACK_ENDS[back_end]):
            return F.scaled_dot_product_attention(q, k, v, **options)

    return attend


def in_tree(_batch, _head, query, key):
    """Whether a token sees another: the trunk before it, its own branch before it, nothing of its siblings or of other trees."""
    size = TRUNK + BRANCHES * BRANCH
    branch = lambda token: torch.where(token % size < TRUNK, -1, (token % size - TRUNK) // BRANCH)
    is_near = (branch(key) == -1) | (branch(key) == branch(query))
    return (key <= query) & (query // size == key // size) & is_near


def attention_forms(on, mask):
    """q, k, v [batch, heads, tokens, head_dim], each a token after the other, and by name the forms of an attention over them."""
    mask, _, head_dim = mask.partition(", heads of ")
    head_dim = int(head_dim or {"bidirectional": 104}.get(mask, 128))
    one = on.rows if on.rows <= SEQUENCE or mask == "group mask" else IMAGE if mask == "bidirectional" else SEQUENCE
    queries = QUERIES if mask == "cross" else one
    keys = 4 * queries if mask == "cross" else one
    lengths = (queries, keys, keys)
    inputs = [on.make(on.rows // queries, n, on.cols // head_dim, head_dim).transpose(1, 2) for n in lengths]
    if mask != "group mask":
        return inputs, {name: sdpa(name, is_causal=mask == "causal") for name in BACK_ENDS}
    tokens = torch.arange(on.rows, device=on.device)
    dense = in_tree(0, 0, tokens[:, None], tokens[None, :])
    forms = {f"{name}, dense mask": sdpa(name, attn_mask=dense) for name in BACK_ENDS}
    blocks = create_block_mask(in_tree, None, None, on.rows, on.rows, device=on.device)
    flex = torch.compile(flex_attention) if on.device == "cuda" else flex_attention
    forms["flex"] = lambda q, k, v: flex(q, k, v, block_mask=blocks)
    return inputs, forms


def attention(on):
    def forward(mask):
        inputs, forms = attention_forms(on, mask)
        return {name: (lambda attend=attend: attend(*inputs)) for name, attend in forms.items()}

    def backward(mask):
        inputs, forms = attention_forms(on, mask)
        dy = torch.randn_like(inputs[0])

        def timed(attend):
            # the forward pass, which may be refused, is made when first called
            made = []
            return lambda: (made or made.append(gradient(attend, inputs, dy)) or made)[0]()

        return {name: timed(attend) for name, attend in forms.items()}

    masks = ("causal", "causal, heads of 64", "causal, heads of 32", "bidirectional", "group mask", "cross")
    passes = {"forward": forward, "backward": backward}
    return {f"{name} {mask}": (lambda make=make, mask=mask: make(mask)) for name, make in passes.items() for mask in masks}


def patch_embed(on, patch=14):
    side = 32 if on.rows % 1024 == 0 else int(on.rows**0.5)
    images = on.rows // side**2
    pixels = torch.randint(0, 256, (images, side * patch, side * patch, 3), dtype=torch.uint8, device=on.device)
    mean, std = (torch.tensor(values, device=on.device) for values in ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)))
    weight, position = on.make(on.cols, 3, patch, patch), on.make(side * side, on.cols)
    norm_weight, norm_bias, dx = on.make(on.cols), on.make(on.cols), on.make(images, side * side, on.cols)

    def product(weight):
        x = ((pixels / 255 - mean) / std).to(on.dtype).permute(0, 3, 1, 2)
        return F.conv2d(x, weight, stride=patch).flatten(2).transpose(1, 2)

    def forward():
        x = product(weight) + position
        return x, F.layer_norm(x, (on.cols,), norm_weight, norm_bias, 1e-6)

    # of one pass: x is not kept where it is not asked for, which PyTorch does not tell apart
    return {
        "forward": lambda: forward,
        "forward + x": lambda: forward,
        "backward weight": lambda: gradient(product, [weight], dx),
    }


def log_ratio(on, width=4096):
    """Of logits [rows, vocabulary]; `forward` is all of it, from hidden states by a frozen head to their gradients."""
    f32 = lambda *shape: on.make(*shape, dtype=torch.float32)
    targets = on.index(on.cols)
    scored = lambda logits: torch.log_softmax(logits, -1).gather(-1, targets[:, None])

    def through(logits, forward, factors=None):
        def work():
            y = forward(logits)
            return torch.autograd.grad(y, logits, torch.ones_like(y) if factors is None else factors)

        logits.requires_grad_()
        return work

    def gradients(factors=None):
        forms = {"": through(f32(on.rows, on.cols), scored, factors)}
        if liger and factors is None:
            forms["liger"] = through(f32(on.rows, on.cols), lambda z: liger.liger_cross_entropy(z, targets, reduction="sum"))
        return forms

    def log_probs():
        logits = f32(on.rows, on.cols)
        return lambda: scored(logits)

    def branch_sums():
        # of rows in so many branches
        ends = torch.arange(on.cols + 1, device=on.device) * on.rows // on.cols
        values = f32(on.rows).double()
        return lambda: torch.segment_reduce(values, "sum", offsets=ends)

    def forward():
        h, head = on.make(on.rows, width, dtype=torch.bfloat16), on.make(on.cols, width, dtype=torch.bfloat16)
        forms = {"": through(h, lambda h: scored((h @ head.T).float()))}
        if liger:
            forms["liger"] = through(h, lambda h: liger.liger_fused_linear_cross_entropy(h, head, targets, reduction="sum"))
        return forms

    return {
        "log_probs": log_probs,
        "gradients": gradients,
        "gradients, factors": lambda: gradients(f32(on.rows, 1)),
        "branch_sums": branch_sums,
        "forward": forward,
    }


OPS = (
    rms_norm,
    layer_norm,
    attention,
    activation,
    rope,
    rows,
    embedding,
    patch_embed,
    column_sums,
    log_ratio,
    sampling,
    grad_norm,
    adamw,
)


def peers(row, device):
    """By name PyTorch's forms of a row, ready to be timed: one without a name, several, or none."""
    op, _, variant = row["kernel"].partition(" ")
    make = {op.__name__: op for op in OPS}.get(op)
    work = make and make(On(row, device)).get(variant)
    forms = work() if work else {}
    return forms if isinstance(forms, dict) else {"": forms}


def seconds(work, device):
    """Median of SAMPLES with a cold L2."""
    work()
    if device == "cpu":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    flush = torch.ones(FLUSH, device=device)
    times = []
    for _ in range(SAMPLES):
        flush.sum()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silkie", required=True, help="the JSON line of `silkie bench kernels --json`")
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    with open(options.silkie) as file:
        report = json.load(file)
    rows = []
    for row in report["rows"]:
        for form, work in peers(row, options.device).items():
            place = f"{row['kernel']:<36} {row['shape'][0]:>5} x {row['shape'][1]:<10} {row['dtype']:<5} torch {form:<22}"
            try:
                us = seconds(work, options.device) * 1e6
            except (RuntimeError, NotImplementedError) as error:
                refusal = str(error).strip().splitlines()[0]
                rows.append({**row, "torch_form": form, "torch_refuses": refusal})
                print(f"{place} refuses: {refusal}")
                continue
            timed = {"torch_form": form, "torch_us": us, "times_as_fast": us / row["us"] if row["us"] else None}
            rows.append({**row, **timed})
            ratio = f"{timed['times_as_fast']:.2f} x" if row["us"] else "not timed by silkie"
            print(f"{place} {us:>10.1f} us   {ratio}")
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    result = {"machine": machine, "torch": torch.__version__, "date": str(datetime.date.today()), "rows": rows}
    with open(options.out, "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
