//! The model: configuration, weights, adapters, presets.

mod config;
mod weights;
