//! The stand-in's tests: products against the same in f64, and what is refused.

mod library;
mod products;
mod refusals;
