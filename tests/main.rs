//! All integration tests, one binary: `ops/`, `model`, `data`, `train`, `cli`, …

mod bars;
mod bench;
#[allow(dead_code)] // its main, which cargo runs
#[path = "../build.rs"]
mod build;
mod cli;
mod demo;
mod device;
mod fuzz;
mod kernels;
mod model;
mod ops;
mod support;

mod data;
mod train;
