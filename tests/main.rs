//! All integration tests, one binary: `ops/`, `model`, `data`, `train`, `cli`, …

mod support;

mod data;
