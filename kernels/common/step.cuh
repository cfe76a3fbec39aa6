// step.cuh — what the optimizer's kernels know of a step: records in device memory, because a
// captured step is replayed and its arguments never change. All numbers are doubles; their Rust
// twins are in src/ops/grad_norm/mod.rs.
#pragma once

// Written by the host before each step.
struct Step {
    double lr;
    double scale; // of the gradient: 1 / pairs
    double loss;  // not finite: the step is skipped
};
static_assert(sizeof(Step) == 24, "as in Rust");

// Written by grad_norm.
struct Verdict {
    double norm;    // of the scaled gradient, before it is clipped
    double scale;   // of the gradient, clipping included; 0 where it is not finite
    double finite;  // 1: the step counts; 0: nothing may change
    double updates; // steps that counted, this one included: the t of AdamW
    double skipped; // steps that did not
};
static_assert(sizeof(Verdict) == 40, "as in Rust");
