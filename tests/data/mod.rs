//! Data: packs and plans.

mod pack;
