//! Every opcode: what it is called in the text and what it does to the lanes.

pub mod atomic;
pub mod carry;
pub mod compare;
pub mod convert;
pub mod float;
pub mod half;
pub mod integer;
pub mod matrix;
pub mod memory;
pub mod warp_wide;

use crate::ptx::ast::Type;

/// `ld.global.nc.v4.b32`, taken apart.
pub struct Opcode<'a> {
    pub name: &'a str,
    pub types: Vec<Type>,
    /// What is neither, and was not asked for yet.
    modifiers: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    pub fn new(parts: &'a [String]) -> Self {
        let mut opcode = Opcode { name: "", types: Vec::new(), modifiers: Vec::new() };
        for (i, part) in parts.iter().enumerate() {
            match Type::from_name(part) {
                _ if i == 0 => opcode.name = part,
                Some(found) => opcode.types.push(found),
                None => opcode.modifiers.push(part),
            }
        }
        opcode
    }

    /// Whether a modifier is there; it counts as understood.
    pub fn flag(&mut self, name: &str) -> bool {
        self.pick(&[(name, ())]).is_some()
    }

    /// Whether a modifier is there, without taking it as understood.
    pub fn has(&self, name: &str) -> bool {
        self.modifiers.contains(&name)
    }

    /// The value of the first of the modifiers that is there; it counts as understood.
    pub fn pick<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let (at, value) = table.iter().find_map(|&(name, value)| {
            Some((self.modifiers.iter().position(|modifier| *modifier == name)?, value))
        })?;
        self.modifiers.remove(at);
        Some(value)
    }

    /// Drops modifiers that change nothing here.
    pub fn ignore(&mut self, is_ignored: impl Fn(&str) -> bool) {
        self.modifiers.retain(|modifier| !is_ignored(modifier));
    }

    /// Errors: a modifier that nobody asked for.
    pub fn finish(&self) -> Result<(), String> {
        match self.modifiers.first() {
            None => Ok(()),
            Some(modifier) => Err(format!("`.{modifier}` is not supported here")),
        }
    }

    /// The types are none that the operation has.
    pub fn unsupported_type<T>(&self) -> Result<T, String> {
        let names: Vec<String> = self.types.iter().map(|r#type| format!(".{:?}", r#type)).collect();
        match names.is_empty() {
            true => Err("it has no type".into()),
            false => Err(format!("`{}` is not supported", names.concat().to_lowercase())),
        }
    }
}
