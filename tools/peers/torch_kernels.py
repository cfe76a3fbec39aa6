#!/usr/bin/env python3
"""Times PyTorch's own form of each row of `silkie bench kernels` on the same GPU.

    silkie bench kernels --json | tail -n 1 > kernels.json
    tools/peers/torch_kernels.py --silkie kernels.json --out peers.json

Needs torch that sees the GPU. A row without a counterpart is left out: PyTorch has no AdamW that also writes a bf16 copy,
and its rms_norm adds no residual, so there the addition is timed with it. --device cpu is for a look at the program itself.
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


def rms_norm(row, device):
    """The four rows of rms_norm, as closures to be timed."""
    dtype, (rows, cols) = DTYPES[row["dtype"]], row["shape"]
    make = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)
    x, residual, dy, weight = make(rows, cols), make(rows, cols), make(rows, cols), make(cols)
    normalise = lambda x, w: F.rms_norm(x, (cols,), w, 1e-6)
    if row["kernel"] == "rms_norm forward":
        return lambda: normalise(x, weight)
    if row["kernel"] == "rms_norm forward + residual":
        return lambda: normalise(x + residual, weight)
    x.requires_grad_()
    inputs = [x]
    if row["kernel"] == "rms_norm backward + weight":
        inputs.append(weight.requires_grad_())
    y = normalise(x, weight)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def flat(row, device):
    """grad_norm and adamw over one flat parameter."""
    parameter = torch.randn(row["shape"][1], device=device)
    parameter.grad = torch.randn_like(parameter)
    if row["kernel"] == "grad_norm":
        return lambda: torch.nn.utils.get_total_norm([parameter.grad])
    if row["kernel"] == "adamw":
        optimizer = torch.optim.AdamW([parameter], lr=1e-5, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
        return optimizer.step
    return None


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
        work = (rms_norm if row["kernel"].startswith("rms_norm") else flat)(row, options.device)
        if work is None:
            continue
        us = seconds(work, options.device) * 1e6
        row = {**row, "torch_us": us, "times_as_fast": us / row["us"] if row["us"] else None}
        rows.append(row)
        ratio = f"{row['times_as_fast']:.2f} x" if row["us"] else "not timed by silkie"
        print(f"{row['kernel']:<28} {row['shape'][0]:>5} x {row['shape'][1]:<10} {row['dtype']:<5} torch {us:>10.1f} us   {ratio}")
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    result = {"machine": machine, "torch": torch.__version__, "date": str(datetime.date.today()), "rows": rows}
    with open(options.out, "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
