//! Data: pictures, shards, packs and plans.

mod image;
mod pack;
mod plan;
mod shard;
