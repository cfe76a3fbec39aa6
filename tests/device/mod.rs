//! The device layer: drivers that are missing or old, memory, launches, graphs, the loader's ring.

mod driver;
mod graph;
mod info;
mod launch;
mod memory;
mod staging;
mod streams;
