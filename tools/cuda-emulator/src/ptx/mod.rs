//! PTX text to a typed module.

pub mod ast;
