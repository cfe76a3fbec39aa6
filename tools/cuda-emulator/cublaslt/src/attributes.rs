//! Attributes of descriptors: numbers of at most eight bytes, by the number of their name.

use std::collections::BTreeMap;
use std::ffi::c_void;

use crate::status::{Status, refuse};

/// An attribute that can be set: its number, its bytes and its value at first.
pub struct Kind {
    pub number: u32,
    pub bytes: usize,
    pub default: u64,
}

/// The attributes of one descriptor.
pub struct Attributes {
    /// What they belong to, for messages.
    what: &'static str,
    kinds: &'static [Kind],
    values: BTreeMap<u32, u64>,
}

impl Attributes {
    pub fn new(what: &'static str, kinds: &'static [Kind]) -> Self {
        Attributes { what, kinds, values: BTreeMap::new() }
    }

    /// The value of an attribute, zero-extended.
    pub fn get(&self, number: u32) -> u64 {
        let default = || self.kinds.iter().find(|kind| kind.number == number).map(|k| k.default);
        self.values.get(&number).copied().or_else(default).unwrap_or(0)
    }

    pub fn put(&mut self, number: u32, value: u64) {
        self.values.insert(number, value);
    }

    fn kind(&self, number: u32) -> Result<&'static Kind, Status> {
        match self.kinds.iter().find(|kind| kind.number == number) {
            Some(kind) => Ok(kind),
            None => {
                let sentence = format!("attribute {number} of a {} is not emulated", self.what);
                refuse(Status::NOT_SUPPORTED, &sentence)
            }
        }
    }

    /// # Safety
    /// `from` is null or points to `bytes` bytes.
    pub unsafe fn read(
        &mut self,
        number: u32,
        from: *const c_void,
        bytes: usize,
    ) -> Result<(), Status> {
        let kind = self.kind(number)?;
        if from.is_null() || bytes != kind.bytes {
            let expected = kind.bytes;
            let what = self.what;
            let sentence = format!(
                "attribute {number} of a {what} has {expected} bytes, got {bytes} at {from:p}"
            );
            return refuse(Status::INVALID_VALUE, &sentence);
        }
        let mut value = [0; 8];
        // SAFETY: the caller's promise; no attribute has more than eight bytes.
        unsafe { value.as_mut_ptr().copy_from(from.cast(), bytes) };
        self.put(number, u64::from_le_bytes(value));
        Ok(())
    }

    /// # Safety
    /// `to` is null or has room for `room` bytes.
    pub unsafe fn write(
        &self,
        number: u32,
        to: *mut c_void,
        room: usize,
        written: Option<&mut usize>,
    ) -> Result<(), Status> {
        let bytes = self.kind(number)?.bytes;
        if let Some(written) = written {
            *written = bytes;
        }
        if room == 0 {
            return Ok(());
        }
        if to.is_null() || room < bytes {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        unsafe { to.cast::<u8>().copy_from(self.get(number).to_le_bytes().as_ptr(), bytes) };
        Ok(())
    }
}
