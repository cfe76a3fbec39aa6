//! Data: pictures, shards, packs and plans.

mod image;
mod pack;
mod pictures;
mod plan;
mod shard;
