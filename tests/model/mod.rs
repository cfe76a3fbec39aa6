//! The model: configuration, weights, adapters, presets.

mod adapter;
mod config;
mod weights;
