//! Records → pairs → trees → mapped shards → packs. Knows neither device nor model.

pub mod atomic;
pub mod image;
pub mod inspect;
pub mod lock;
pub mod pack;
mod partition;
pub mod pictures;
pub mod plan;
pub mod prepare;
pub mod python;
pub mod records;
pub mod shard;
pub mod template;
pub mod tokenizer;
mod tree;
pub mod trees;
