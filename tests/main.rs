//! All integration tests, one binary: `ops/`, `model`, `data`, `train`, `cli`, …

mod bench;
mod cli;
mod demo;
mod fuzz;
mod model;
mod ops;
mod support;

mod data;
mod train;
