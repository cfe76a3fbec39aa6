//! `silkie demo`: a small world in which preference distillation visibly works.

pub mod files;
pub mod talk;
pub mod world;
