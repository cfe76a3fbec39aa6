//! Qwen-VL as a sequence of ops, forward and hand-written backward; LoRA; weights in and out.

pub mod adapter;
pub mod config;
pub mod init;
pub mod merge;
pub mod names;
pub mod weights;
