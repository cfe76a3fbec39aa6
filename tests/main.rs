//! All integration tests, one binary: `ops/`, `model`, `data`, `train`, `cli`, …

mod demo;
mod ops;
mod support;

mod data;
mod train;
