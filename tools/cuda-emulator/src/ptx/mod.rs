//! PTX text to a typed module.

pub mod ast;
mod cursor;
mod function;
mod lexer;
mod parser;
mod scope;
mod variable;

use std::fmt;

pub use parser::parse;

/// What in the text is not understood, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub line: u32,
    pub message: String,
}

impl Error {
    fn new(line: u32, message: impl Into<String>) -> Self {
        Error { line, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for Error {}
