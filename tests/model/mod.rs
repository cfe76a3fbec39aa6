//! The model: configuration, weights, adapters, presets.

mod adapter;
mod config;
mod init;
mod torch;
mod weights;
