#!/usr/bin/env python3
"""Times PyTorch's own form of each row of `silkie bench kernels` on the same GPU.

    silkie bench kernels --json | tail -n 1 > kernels.json
    tools/peers/torch_kernels.py --silkie kernels.json --out peers.json

Needs torch that sees the GPU. A row is written as PyTorch's users write it, and what PyTorch has no op for is composed: the residual
is added before the norm, a bias gradient summed after gelu's backward. Rows without a counterpart (lora, add_cycled, AdamW with a bf16
copy) are left out. --device cpu is for a look at the program itself.
"""

import argparse
import datetime
import json
import statistics
import time

import torch
import torch.nn.functional as F

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


OPS = (rms_norm, layer_norm, activation, rope, rows, embedding, column_sums, sampling, grad_norm, adamw)


def peer(row, device):
    """PyTorch's form of a row, ready to be timed; None where it has none."""
    op, _, variant = row["kernel"].partition(" ")
    make = {op.__name__: op for op in OPS}.get(op)
    work = make and make(On(row, device)).get(variant)
    return work and work()


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
        work = peer(row, options.device)
        if work is None:
            continue
        us = seconds(work, options.device) * 1e6
        row = {**row, "torch_us": us, "times_as_fast": us / row["us"] if row["us"] else None}
        rows.append(row)
        ratio = f"{row['times_as_fast']:.2f} x" if row["us"] else "not timed by silkie"
        print(f"{row['kernel']:<36} {row['shape'][0]:>5} x {row['shape'][1]:<10} {row['dtype']:<5} torch {us:>10.1f} us   {ratio}")
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    result = {"machine": machine, "torch": torch.__version__, "date": str(datetime.date.today()), "rows": rows}
    with open(options.out, "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
