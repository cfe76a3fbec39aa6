//! Data: text, records, pictures, shards, packs and plans.

mod image;
mod pack;
mod pictures;
mod plan;
mod prepare;
mod records;
mod shard;
mod template;
mod tokenizer;
