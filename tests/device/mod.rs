//! The device layer: drivers that are missing or old, memory, launches, graphs, the loader's ring.

mod driver;
mod info;
