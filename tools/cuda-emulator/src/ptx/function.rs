//! Bodies of functions.

use std::collections::{HashMap, HashSet};

use super::Error;
use super::ast::{Function, Instruction, Operand, Place, Register, Space};
use super::cursor::Cursor;
use super::lexer::{Kind, Number};
use super::scope::Scopes;
use super::variable;

/// Parses the body that opens at the cursor into `function`, whose parameters are known already.
/// `module` are the names of the variables and functions around it.
pub fn body<'a>(
    cursor: &mut Cursor<'a>,
    module: &HashSet<String>,
    function: &mut Function,
) -> Result<(), Error> {
    let scopes = Scopes::new(cursor.ahead(), cursor.at());
    function.labels = vec![0; scopes.label_count];
    let mut body = Body { cursor, module, scopes, places: Places::default(), function };
    body.open()?;
    for parameter in body.function.results.iter().chain(&body.function.params) {
        body.scopes.declare_variable(&parameter.name);
    }
    while body.statement()? {}
    let Body { scopes, places, function, .. } = body;
    function.registers = scopes.registers;
    function.places = places.all;
    Ok(())
}

struct Body<'b, 'a> {
    cursor: &'b mut Cursor<'a>,
    module: &'b HashSet<String>,
    scopes: Scopes,
    places: Places,
    function: &'b mut Function,
}

impl Body<'_, '_> {
    /// False at the end of the body.
    fn statement(&mut self) -> Result<bool, Error> {
        match self.cursor.peek() {
            Kind::Mark('{') => self.open()?,
            Kind::Mark('}') => {
                self.cursor.next();
                return Ok(self.scopes.leave());
            }
            Kind::Mark(';') => {
                self.cursor.next();
            }
            Kind::Mark('@') => self.instruction()?,
            Kind::Word(name) => match self.cursor.ahead().get(1).map(|token| token.kind) {
                Some(Kind::Mark(':')) => self.label(name)?,
                _ => self.instruction()?,
            },
            Kind::Directive(name) => self.directive(name)?,
            _ => return self.cursor.expected("an instruction, a directive or `}`"),
        }
        Ok(true)
    }

    fn open(&mut self) -> Result<(), Error> {
        let (at, line) = (self.cursor.at(), self.cursor.line());
        self.cursor.expect('{')?;
        self.scopes.enter(at, line)
    }

    fn directive(&mut self, name: &str) -> Result<(), Error> {
        let space = match name {
            "reg" => return self.registers(),
            "loc" => return self.places.parse(self.cursor),
            "pragma" => {
                self.cursor.next();
                self.cursor.text("a pragma")?;
                return self.cursor.expect(';');
            }
            "local" => Space::Local,
            "shared" => Space::Shared,
            "param" => Space::Param,
            _ => return self.cursor.error(format!("unknown directive `.{name}` in a function")),
        };
        self.cursor.next();
        for mut variable in variable::variables(self.cursor, space, false)? {
            variable.name = self.scopes.declare_variable(&variable.name);
            self.function.variables.push(variable);
        }
        Ok(())
    }

    /// `.reg .b32 %r<115>, x;`
    fn registers(&mut self) -> Result<(), Error> {
        self.cursor.next();
        let r#type = self.cursor.r#type()?;
        loop {
            let name = self.cursor.word("a register's name")?;
            let count = match self.cursor.take('<') {
                true => Some(self.cursor.unsigned("a number of registers")?),
                false => None,
            };
            if count.is_some() {
                self.cursor.expect('>')?;
            }
            self.scopes.declare_register(name, count, r#type);
            if !self.cursor.take(',') {
                return self.cursor.expect(';');
            }
        }
    }

    /// `$L__BB0_4:`, `$T: .branchtargets $L1, $L2;`
    fn label(&mut self, name: &str) -> Result<(), Error> {
        self.cursor.next();
        self.cursor.next();
        let Some(number) = self.scopes.label(name) else {
            return self.cursor.error(format!("label `{name}` is declared as something else too"));
        };
        self.function.labels[number as usize] = self.function.body.len();
        if !self.cursor.take_directive("branchtargets") {
            return Ok(());
        }
        let mut labels = Vec::new();
        loop {
            match self.operand()? {
                Operand::Label(label) => labels.push(label),
                _ => return self.cursor.error("`.branchtargets` lists labels"),
            }
            if !self.cursor.take(',') {
                break;
            }
        }
        self.scopes.declare_table(name, labels);
        self.cursor.expect(';')
    }

    fn instruction(&mut self) -> Result<(), Error> {
        let guard = match self.cursor.take('@') {
            true => Some(self.guard()?),
            false => None,
        };
        let line = self.cursor.line();
        let opcode = self.cursor.word("an opcode")?.split('.').map(str::to_owned).collect();
        let mut operands = Vec::new();
        if self.cursor.peek() != Kind::Mark(';') {
            operands = self.list(Self::operand)?;
        }
        self.cursor.expect(';')?;
        let place = self.places.current;
        self.function.body.push(Instruction { guard, opcode, operands, line, place });
        Ok(())
    }

    fn guard(&mut self) -> Result<(Register, bool), Error> {
        let is_negated = self.cursor.take('!');
        match self.simple()? {
            Operand::Register(register) => Ok((register, is_negated)),
            _ => self.cursor.error("a guard is a predicate register"),
        }
    }

    fn list(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<Operand, Error>,
    ) -> Result<Vec<Operand>, Error> {
        let mut items = vec![item(self)?];
        while self.cursor.take(',') {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn operand(&mut self) -> Result<Operand, Error> {
        if self.cursor.take('{') {
            let items = self.list(Self::simple)?;
            self.cursor.expect('}')?;
            return Ok(Operand::Vector(items));
        }
        if self.cursor.take('(') {
            if self.cursor.take(')') {
                return Ok(Operand::List(Vec::new()));
            }
            let items = self.list(Self::simple)?;
            self.cursor.expect(')')?;
            return Ok(Operand::List(items));
        }
        if self.cursor.take('[') {
            return self.address();
        }
        let first = self.simple()?;
        if self.cursor.take('|') {
            let second = self.simple()?;
            return Ok(Operand::Pair(first.into(), second.into()));
        }
        Ok(first)
    }

    /// `%rd1+16]`
    fn address(&mut self) -> Result<Operand, Error> {
        let (base, offset) = match self.simple()? {
            Operand::Symbol(name, offset) => (Operand::Symbol(name, 0), offset),
            base @ Operand::Register(_) => (base, self.cursor.offset()?),
            base @ Operand::Integer(_) => (base, self.cursor.offset()?),
            _ => {
                return self
                    .cursor
                    .error("the base of an address is a register, a variable or an integer");
            }
        };
        self.cursor.expect(']')?;
        Ok(Operand::Address(base.into(), offset))
    }

    /// An operand without parts.
    fn simple(&mut self) -> Result<Operand, Error> {
        match self.cursor.peek() {
            Kind::Number(_) => Ok(match self.cursor.number()? {
                Number::Integer(value) => Operand::Integer(value),
                Number::F32(bits) => Operand::F32(bits),
                Number::F64(bits) => Operand::F64(bits),
            }),
            Kind::Mark('-') => {
                self.cursor.next();
                Ok(match self.cursor.number()? {
                    Number::Integer(value) => Operand::Integer(value.wrapping_neg()),
                    Number::F32(bits) => Operand::F32(bits ^ 1 << 31),
                    Number::F64(bits) => Operand::F64(bits ^ 1 << 63),
                })
            }
            Kind::Mark('!') => {
                self.cursor.next();
                match self.simple_name()? {
                    Operand::Register(register) => Ok(Operand::Not(register)),
                    _ => self.cursor.error("`!` negates a predicate register"),
                }
            }
            Kind::Word(_) => self.simple_name(),
            _ => self.cursor.expected("an operand"),
        }
    }

    fn simple_name(&mut self) -> Result<Operand, Error> {
        let name = match self.cursor.peek() {
            Kind::Word("_") => {
                self.cursor.next();
                return Ok(Operand::Sink);
            }
            Kind::Word("WARP_SZ") => {
                self.cursor.next();
                return Ok(Operand::Integer(32));
            }
            Kind::Word(name) => name,
            _ => return self.cursor.expected("a name"),
        };
        let found = match self.scopes.resolve(name) {
            Some(found) => found,
            None if self.module.contains(name) => Operand::Symbol(name.to_owned(), 0),
            None if name.starts_with('%') => Operand::Special(name.to_owned()),
            None => return self.cursor.error(format!("`{name}` is not declared")),
        };
        self.cursor.next();
        match found {
            Operand::Symbol(name, _) => Ok(Operand::Symbol(name, self.cursor.offset()?)),
            found => Ok(found),
        }
    }
}

/// What `.loc` said.
#[derive(Default)]
struct Places {
    all: Vec<Place>,
    numbers: HashMap<(u32, u32, u32, Option<u32>), u32>,
    /// The latest place with this file, line and column: a call there is inlined at that place.
    latest: HashMap<(u32, u32, u32), u32>,
    current: Option<u32>,
}

impl Places {
    /// `.loc 1 78 5, function_name $L__info_string0+8, inlined_at 1 236 5`
    fn parse(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Error> {
        cursor.next();
        let at = position(cursor)?;
        let mut inlined_at = None;
        while cursor.take(',') {
            match cursor.word("`function_name` or `inlined_at`")? {
                "function_name" => {
                    cursor.word("a label")?;
                    cursor.offset()?;
                }
                "inlined_at" => {
                    let caller = position(cursor)?;
                    let known = self.latest.get(&caller).copied();
                    inlined_at = Some(known.unwrap_or_else(|| self.number(caller, None)));
                }
                word => return cursor.error(format!("`{word}` is not known in `.loc`")),
            }
        }
        // Line 0: the compiler cannot tell.
        self.current = if at.1 == 0 { None } else { Some(self.number(at, inlined_at)) };
        Ok(())
    }

    fn number(&mut self, at: (u32, u32, u32), inlined_at: Option<u32>) -> u32 {
        let (file, line, column) = at;
        let number = *self.numbers.entry((file, line, column, inlined_at)).or_insert_with(|| {
            self.all.push(Place { file, line, column, inlined_at });
            self.all.len() as u32 - 1
        });
        self.latest.insert(at, number);
        number
    }
}

/// File, line and column.
fn position(cursor: &mut Cursor<'_>) -> Result<(u32, u32, u32), Error> {
    Ok((
        cursor.unsigned("a file's number")?,
        cursor.unsigned("a line")?,
        cursor.unsigned("a column")?,
    ))
}
