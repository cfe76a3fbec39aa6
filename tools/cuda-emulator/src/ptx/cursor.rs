//! A place in the tokens, and what is expected there.

use super::Error;
use super::ast::Type;
use super::lexer::{Kind, Number, Token, number};

pub struct Cursor<'a> {
    /// The last is [`Kind::End`] and never passed.
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(tokens: Vec<Token<'a>>) -> Self {
        Cursor { tokens, at: 0 }
    }

    /// Index of the next token.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Tokens from the next one on.
    pub fn ahead(&self) -> &[Token<'a>] {
        &self.tokens[self.at..]
    }

    pub fn peek(&self) -> Kind<'a> {
        self.tokens[self.at].kind
    }

    /// Line of the next token.
    pub fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    pub fn next(&mut self) -> Kind<'a> {
        let kind = self.peek();
        if kind != Kind::End {
            self.at += 1;
        }
        kind
    }

    /// An error at the next token.
    pub fn error<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error::new(self.line(), message))
    }

    /// The error of having found the next token.
    pub fn expected<T>(&self, what: &str) -> Result<T, Error> {
        self.error(format!("expected {what}, got {}", self.peek()))
    }

    pub fn take(&mut self, mark: char) -> bool {
        let found = self.peek() == Kind::Mark(mark);
        if found {
            self.at += 1;
        }
        found
    }

    pub fn take_directive(&mut self, name: &str) -> bool {
        let found = self.peek() == Kind::Directive(name);
        if found {
            self.at += 1;
        }
        found
    }

    pub fn expect(&mut self, mark: char) -> Result<(), Error> {
        if self.take(mark) { Ok(()) } else { self.expected(&format!("`{mark}`")) }
    }

    pub fn word(&mut self, what: &str) -> Result<&'a str, Error> {
        let Kind::Word(text) = self.peek() else { return self.expected(what) };
        self.at += 1;
        Ok(text)
    }

    pub fn text(&mut self, what: &str) -> Result<&'a str, Error> {
        let Kind::Text(text) = self.peek() else { return self.expected(what) };
        self.at += 1;
        Ok(text)
    }

    /// A number without a sign.
    pub fn number(&mut self) -> Result<Number, Error> {
        let Kind::Number(text) = self.peek() else { return self.expected("a number") };
        let Some(value) = number(text) else {
            return self.error(format!("`{text}` is not a number of PTX"));
        };
        self.at += 1;
        Ok(value)
    }

    /// An integer without a sign that fits.
    pub fn unsigned(&mut self, what: &str) -> Result<u32, Error> {
        if !matches!(self.peek(), Kind::Number(_)) {
            return self.expected(what);
        }
        let line = self.line();
        match self.number()? {
            Number::Integer(value) if u32::try_from(value).is_ok() => Ok(value as u32),
            _ => Err(Error::new(line, format!("expected {what} below 2^32"))),
        }
    }

    /// `+8`, `-8`, `+-8`, or nothing, which is 0.
    pub fn offset(&mut self) -> Result<i64, Error> {
        let mut sign = 1i64;
        let mut is_there = false;
        loop {
            if self.take('-') {
                sign = -sign;
            } else if !self.take('+') {
                break;
            }
            is_there = true;
        }
        if !is_there {
            return Ok(0);
        }
        match self.number()? {
            Number::Integer(value) => Ok(value.wrapping_mul(sign)),
            _ => self.error("an offset is an integer"),
        }
    }

    /// `.b32`
    pub fn r#type(&mut self) -> Result<Type, Error> {
        let Kind::Directive(name) = self.peek() else { return self.expected("a type") };
        let Some(found) = Type::from_name(name) else {
            return self.error(format!("unknown type or directive `.{name}`"));
        };
        self.at += 1;
        Ok(found)
    }

    /// `256, 1, 1`, of which the last two may be missing.
    pub fn extent(&mut self) -> Result<[u32; 3], Error> {
        let mut extent = [1; 3];
        for i in 0..3 {
            if i > 0 && !self.take(',') {
                break;
            }
            extent[i] = self.unsigned("a number of threads")?;
        }
        Ok(extent)
    }
}
