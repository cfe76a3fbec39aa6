//! Declarations of variables and of parameters, and what variables start with.

use super::Error;
use super::ast::{Initial, Space, Type, Variable};
use super::cursor::Cursor;
use super::lexer::{Kind, Number};

/// No variable of a real program is larger.
const MAX_BYTES: u64 = 1 << 40;
const MAX_ALIGN: u32 = 4096;

/// `.align 4 .b8 x[16] = {1, 2}, y;` after its space.
pub fn variables(
    cursor: &mut Cursor<'_>,
    space: Space,
    is_extern: bool,
) -> Result<Vec<Variable>, Error> {
    let kind = Element::parse(cursor)?;
    let mut found = Vec::new();
    loop {
        let mut variable = kind.named(cursor, space)?;
        let line = variable.line;
        if cursor.take('=') {
            if !matches!(space, Space::Global | Space::Const) {
                return cursor.error("only .global and .const variables have initial values");
            }
            let initial = initial(cursor, kind.r#type)?;
            if variable.bytes == 0 {
                variable.bytes = initial.bytes.len() as u64;
            } else if initial.bytes.len() as u64 > variable.bytes {
                let name = &variable.name;
                let message = format!("more initial values than `{name}` has elements");
                return Err(Error::new(line, message));
            }
            variable.initial = Some(initial);
        }
        if is_extern && !(space == Space::Shared && variable.bytes == 0) {
            let message = format!(
                "`{}` is in another module; expected `.extern .shared x[]` only",
                variable.name
            );
            return Err(Error::new(line, message));
        }
        if !is_extern && variable.bytes == 0 {
            return Err(Error::new(line, format!("`{}` has no size", variable.name)));
        }
        found.push(variable);
        if !cursor.take(',') {
            break;
        }
    }
    cursor.expect(';')?;
    Ok(found)
}

/// `(.param .u64 x, .param .align 8 .b8 y[88])`
pub fn parameters(cursor: &mut Cursor<'_>) -> Result<Vec<Variable>, Error> {
    let mut found = Vec::new();
    cursor.expect('(')?;
    if cursor.take(')') {
        return Ok(found);
    }
    loop {
        if !cursor.take_directive("param") {
            return cursor.expected("`.param`, the space in which this emulator passes parameters");
        }
        let variable = Element::parse(cursor)?.named(cursor, Space::Param)?;
        if variable.bytes == 0 {
            return cursor.error(format!("parameter `{}` has no size", variable.name));
        }
        found.push(variable);
        if !cursor.take(',') {
            break;
        }
    }
    cursor.expect(')')?;
    Ok(found)
}

/// What a declaration says before its names.
struct Element {
    r#type: Type,
    bytes: u64,
    align: u32,
}

impl Element {
    /// `.align 8 .v2 .b32`, `.u64 .ptr .global .align 16`
    fn parse(cursor: &mut Cursor<'_>) -> Result<Element, Error> {
        let align = alignment(cursor)?;
        let lanes = match cursor.peek() {
            Kind::Directive("v2") => 2,
            Kind::Directive("v4") => 4,
            _ => 1,
        };
        if lanes > 1 {
            cursor.next();
        }
        let r#type = cursor.r#type()?;
        if r#type == Type::Pred {
            return cursor.error("a variable in memory cannot be a predicate");
        }
        if cursor.take_directive("ptr") {
            if let Kind::Directive("global" | "const" | "shared" | "local" | "generic") =
                cursor.peek()
            {
                cursor.next();
            }
            alignment(cursor)?; // of what is pointed to
        }
        let bytes = lanes * u64::from(r#type.bytes());
        Ok(Element { r#type, bytes, align: align.unwrap_or(bytes as u32) })
    }

    /// `x`, `x[4][8]`, or `x[]`, which has 0 bytes.
    fn named(&self, cursor: &mut Cursor<'_>, space: Space) -> Result<Variable, Error> {
        let line = cursor.line();
        let name = cursor.word("a variable's name")?.to_owned();
        let mut bytes = Some(self.bytes);
        while cursor.take('[') {
            let count = if cursor.peek() == Kind::Mark(']') {
                0
            } else {
                u64::from(cursor.unsigned("a number of elements")?)
            };
            bytes = bytes.and_then(|bytes| bytes.checked_mul(count));
            cursor.expect(']')?;
        }
        match bytes {
            Some(bytes) if bytes <= MAX_BYTES => {
                Ok(Variable { name, space, align: self.align, bytes, initial: None, line })
            }
            _ => Err(Error::new(line, format!("`{name}` is larger than 2^40 bytes"))),
        }
    }
}

fn alignment(cursor: &mut Cursor<'_>) -> Result<Option<u32>, Error> {
    if !cursor.take_directive("align") {
        return Ok(None);
    }
    let align = cursor.unsigned("an alignment")?;
    if align.is_power_of_two() && align <= MAX_ALIGN {
        Ok(Some(align))
    } else {
        cursor.error(format!(
            "expected an alignment that is a power of two up to {MAX_ALIGN}, got {align}"
        ))
    }
}

/// `3`, `{1, -2}`, `0f3F800000`, `{generic(x)+4, y}`
fn initial(cursor: &mut Cursor<'_>, r#type: Type) -> Result<Initial, Error> {
    let mut initial = Initial::default();
    if !cursor.take('{') {
        element(cursor, r#type, &mut initial)?;
        return Ok(initial);
    }
    loop {
        element(cursor, r#type, &mut initial)?;
        if !cursor.take(',') {
            break;
        }
    }
    cursor.expect('}')?;
    Ok(initial)
}

fn element(cursor: &mut Cursor<'_>, r#type: Type, initial: &mut Initial) -> Result<(), Error> {
    let bytes = r#type.bytes() as usize;
    if let Kind::Word(word) = cursor.peek() {
        if bytes != 8 {
            return cursor.error(format!(
                "the address of {} needs 8 bytes, the element has {bytes}",
                cursor.peek()
            ));
        }
        cursor.next();
        let symbol = if word == "generic" {
            cursor.expect('(')?;
            let symbol = cursor.word("a symbol")?;
            cursor.expect(')')?;
            symbol
        } else {
            word
        };
        let offset = cursor.offset()?;
        initial.addresses.push((initial.bytes.len() as u64, symbol.to_owned(), offset));
        initial.bytes.extend([0; 8]);
        return Ok(());
    }
    let is_negative = cursor.take('-');
    let signed = |bits: u64| bits ^ u64::from(is_negative) << (8 * bytes - 1);
    let value = match (cursor.number()?, r#type) {
        (Number::F32(bits), Type::F32 | Type::B32) => signed(bits.into()),
        (Number::F64(bits), Type::F64 | Type::B64) => signed(bits),
        (Number::F64(bits), Type::F32) => signed((f64::from_bits(bits) as f32).to_bits().into()),
        (Number::Integer(value), Type::F32) => signed((value as f32).to_bits().into()),
        (Number::Integer(value), Type::F64) => signed((value as f64).to_bits()),
        (Number::Integer(value), _) if bytes <= 8 => {
            (if is_negative { value.wrapping_neg() } else { value }) as u64
        }
        _ => return cursor.error("an initial value of another type than its variable"),
    };
    initial.bytes.extend(&value.to_le_bytes()[..bytes]);
    Ok(())
}
