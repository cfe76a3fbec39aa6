//! The model: configuration, weights, adapters, presets.

mod adapter;
mod config;
mod torch;
mod weights;
