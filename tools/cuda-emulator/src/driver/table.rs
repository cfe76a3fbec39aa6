//! Objects by handle.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::CUresult;

/// Objects of one kind by handle. Handles are unique over all kinds and never used twice.
pub struct Table<T>(BTreeMap<u64, T>);

/// A handle that no object has had.
pub fn new_handle() -> u64 {
    // Far from 0, 1 and 2, which name the built-in streams; in steps, to look like addresses in a
    // log.
    static NEXT: AtomicU64 = AtomicU64::new(0x1000);
    NEXT.fetch_add(0x10, Ordering::Relaxed)
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(BTreeMap::new())
    }
}

impl<T> Table<T> {
    pub fn insert(&mut self, object: T) -> u64 {
        let handle = new_handle();
        self.insert_at(handle, object);
        handle
    }

    pub fn insert_at(&mut self, handle: u64, object: T) {
        self.0.insert(handle, object);
    }

    pub fn get(&self, handle: u64) -> Result<&T, CUresult> {
        self.0.get(&handle).ok_or(CUresult::INVALID_HANDLE)
    }

    pub fn get_mut(&mut self, handle: u64) -> Result<&mut T, CUresult> {
        self.0.get_mut(&handle).ok_or(CUresult::INVALID_HANDLE)
    }

    pub fn remove(&mut self, handle: u64) -> Result<T, CUresult> {
        self.0.remove(&handle).ok_or(CUresult::INVALID_HANDLE)
    }

    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.0.retain(|_, object| keep(object));
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.0.iter().map(|(&handle, object)| (handle, object))
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.values_mut()
    }

    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.0.into_values()
    }
}
