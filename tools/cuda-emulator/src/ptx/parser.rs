//! A module: its directives, variables and functions.

use std::collections::HashSet;

use super::ast::{Function, Module, Space};
use super::cursor::Cursor;
use super::lexer::{self, Kind};
use super::{Error, function, variable};

/// Reads the text of a module. Errors: what is not PTX, or not of the part that is supported.
pub fn parse(text: &str) -> Result<Module, Error> {
    let cursor = Cursor::new(lexer::tokens(text)?);
    let mut parser = Parser { cursor, names: HashSet::new(), module: Module::default() };
    while parser.item()? {}
    Ok(parser.module)
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    /// Variables and functions declared so far.
    names: HashSet<String>,
    module: Module,
}

impl Parser<'_> {
    /// False at the end of the text.
    fn item(&mut self) -> Result<bool, Error> {
        let name = match self.cursor.peek() {
            Kind::End => return Ok(false),
            Kind::Mark(';') => {
                self.cursor.next();
                return Ok(true);
            }
            Kind::Directive(name) => name,
            _ => return self.cursor.expected("a directive"),
        };
        match name {
            "version" => self.version()?,
            "target" => self.target()?,
            "address_size" => self.address_size()?,
            "file" => self.file()?,
            "section" => self.skip_section()?,
            "pragma" => {
                self.cursor.next();
                self.cursor.text("a pragma")?;
                self.cursor.expect(';')?;
            }
            _ => self.declaration()?,
        }
        Ok(true)
    }

    /// `.version 9.0`
    fn version(&mut self) -> Result<(), Error> {
        self.cursor.next();
        let Kind::Number(text) = self.cursor.peek() else {
            return self.cursor.expected("a version");
        };
        let parts =
            text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let Some(version) = parts else { return self.cursor.expected("a version such as 9.0") };
        self.cursor.next();
        self.module.version = version;
        Ok(())
    }

    /// `.target sm_80, debug`
    fn target(&mut self) -> Result<(), Error> {
        self.cursor.next();
        self.module.target = self.cursor.word("an architecture such as sm_80")?.to_owned();
        while self.cursor.take(',') {
            match self.cursor.word("a platform option")? {
                "debug" => {}
                word => {
                    return self.cursor.error(format!("`{word}` is not supported in `.target`"));
                }
            }
        }
        Ok(())
    }

    fn address_size(&mut self) -> Result<(), Error> {
        self.cursor.next();
        match self.cursor.unsigned("an address size")? {
            64 => Ok(()),
            bits => self.cursor.error(format!("expected addresses of 64 bits, got {bits}")),
        }
    }

    /// `.file 1 "rms_norm.cu", 1700000000, 4096`
    fn file(&mut self) -> Result<(), Error> {
        self.cursor.next();
        let number = self.cursor.unsigned("a file's number")?;
        let path = self.cursor.text("a file's path")?;
        while self.cursor.take(',') {
            self.cursor.number()?;
        }
        self.module.files.insert(number, path.to_owned());
        Ok(())
    }

    /// `.section .debug_str { .. }`: of interest to debuggers only.
    fn skip_section(&mut self) -> Result<(), Error> {
        let line = self.cursor.line();
        while !matches!(self.cursor.peek(), Kind::Mark('{') | Kind::End) {
            self.cursor.next();
        }
        loop {
            match self.cursor.next() {
                Kind::Mark('}') => return Ok(()),
                Kind::End => return Err(Error::new(line, "the section has no end")),
                _ => {}
            }
        }
    }

    /// A variable or a function.
    fn declaration(&mut self) -> Result<(), Error> {
        let mut is_extern = false;
        loop {
            let Kind::Directive(name) = self.cursor.peek() else {
                return self.cursor.expected("a state space, `.func` or `.entry`");
            };
            let space = match name {
                "extern" => {
                    is_extern = true;
                    self.cursor.next();
                    continue;
                }
                "visible" | "weak" | "common" => {
                    self.cursor.next();
                    continue;
                }
                "entry" | "func" => return self.function(name == "entry"),
                "global" => Space::Global,
                "const" => Space::Const,
                "shared" => Space::Shared,
                _ => return self.cursor.error(format!("unknown directive `.{name}`")),
            };
            self.cursor.next();
            for variable in variable::variables(&mut self.cursor, space, is_extern)? {
                if !self.names.insert(variable.name.clone()) {
                    let message = format!("`{}` is declared twice", variable.name);
                    return Err(Error::new(variable.line, message));
                }
                self.module.variables.push(variable);
            }
            return Ok(());
        }
    }

    /// `.func (.param .b32 result) name (.param .b32 x) { .. }`, or a declaration that ends in `;`.
    fn function(&mut self, is_entry: bool) -> Result<(), Error> {
        self.cursor.next();
        let line = self.cursor.line();
        let mut results = Vec::new();
        if !is_entry && self.cursor.peek() == Kind::Mark('(') {
            results = variable::parameters(&mut self.cursor)?;
        }
        let name = self.cursor.word("a function's name")?.to_owned();
        let mut params = Vec::new();
        if self.cursor.peek() == Kind::Mark('(') {
            params = variable::parameters(&mut self.cursor)?;
        }
        self.names.insert(name.clone());
        let mut function = Function {
            name,
            is_entry,
            params,
            results,
            max_threads: None,
            required_threads: None,
            registers: Vec::new(),
            variables: Vec::new(),
            body: Vec::new(),
            labels: Vec::new(),
            places: Vec::new(),
            line,
        };
        self.limits(&mut function)?;
        if self.cursor.take(';') {
            return Ok(());
        }
        if self.module.functions.iter().any(|known| known.name == function.name) {
            return Err(Error::new(line, format!("`{}` is defined twice", function.name)));
        }
        function::body(&mut self.cursor, &self.names, &mut function)?;
        self.module.functions.push(function);
        Ok(())
    }

    /// `.maxntid 256, 1, 1 .minnctapersm 2`
    fn limits(&mut self, function: &mut Function) -> Result<(), Error> {
        while let Kind::Directive(name) = self.cursor.peek() {
            let line = self.cursor.line();
            self.cursor.next();
            match name {
                "maxntid" => function.max_threads = Some(self.cursor.extent()?),
                "reqntid" => function.required_threads = Some(self.cursor.extent()?),
                // They steer ptxas, not what the kernel does.
                "minnctapersm" | "maxnctapersm" | "maxnreg" => {
                    self.cursor.unsigned("a number")?;
                }
                "noreturn" => {}
                "pragma" => {
                    self.cursor.text("a pragma")?;
                    self.cursor.expect(';')?;
                }
                _ => {
                    let message = format!("unknown directive `.{name}` of `{}`", function.name);
                    return Err(Error::new(line, message));
                }
            }
        }
        Ok(())
    }
}
