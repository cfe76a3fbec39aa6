//! Silkie: preference distillation for vision-language models on bare metal.
//!
//! Each layer calls only what stands below it; `data` stands beside them and knows neither device
//! nor model.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | what a person types; prints; no mathematics |
//! | [`demo`] | a small world in which preference distillation visibly works |
//! | [`train`] | the step loop: schedule, optimizer, checkpoints, metrics, resume |
//! | [`model`] | Qwen-VL as a sequence of ops, forward and backward; LoRA; weights in and out |
//! | [`ops`] | one op, one place: contract, CPU implementation, later its CUDA launch |
//! | [`tensor`] | a view: buffer, shape, dtype, row stride |
//! | [`device`] | memory and threads |
//! | [`data`] | records → pairs → trees → mapped shards → packs |
//! | [`error`] | one error type, one message style |

pub mod cli;
pub mod data;
pub mod demo;
pub mod device;
pub mod error;
pub mod model;
pub mod ops;
pub mod tensor;
pub mod train;

pub use error::{Error, Result};
