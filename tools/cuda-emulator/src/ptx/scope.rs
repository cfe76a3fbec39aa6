//! Names of a function's body: registers, variables and labels of nested blocks.

use std::collections::{HashMap, HashSet};

use super::Error;
use super::ast::{Operand, Register, Type};
use super::lexer::{Kind, Token};

/// Blocks in blocks; real programs have two or three.
const MAX_DEPTH: usize = 64;

/// What a name of a scope stands for.
#[derive(Clone, Debug)]
enum Meaning {
    Register(Register),
    /// Its unique name.
    Variable(String),
    Label(u32),
    /// The labels of `.branchtargets`.
    Table(Vec<u32>),
}

#[derive(Default)]
struct Scope {
    names: HashMap<String, Meaning>,
    /// `%r<115>` by its prefix: how many, of what type.
    families: HashMap<String, (u32, Type)>,
}

/// The scopes that are open, the innermost last, and the registers found in them so far.
pub struct Scopes {
    open: Vec<Scope>,
    /// Labels of the block that opens at a token.
    labels: HashMap<usize, Vec<(String, u32)>>,
    pub label_count: usize,
    pub registers: Vec<(String, Type)>,
    taken: HashSet<String>,
}

impl Scopes {
    /// For the body that opens at the first of `tokens`, which is token `at` of the text.
    pub fn new(tokens: &[Token<'_>], at: usize) -> Self {
        let mut labels: HashMap<usize, Vec<(String, u32)>> = HashMap::new();
        let mut label_count = 0;
        let mut open = Vec::new();
        for (i, pair) in tokens.windows(2).enumerate() {
            match (pair[0].kind, pair[1].kind) {
                (Kind::Mark('{'), _) => open.push(at + i),
                (Kind::Mark('}'), _) => {
                    open.pop();
                    if open.is_empty() {
                        break;
                    }
                }
                (Kind::Word(name), Kind::Mark(':')) => {
                    let Some(&block) = open.last() else { break };
                    labels.entry(block).or_default().push((name.to_owned(), label_count));
                    label_count += 1;
                }
                _ => {}
            }
        }
        Scopes {
            open: Vec::new(),
            labels,
            label_count: label_count as usize,
            registers: Vec::new(),
            taken: HashSet::new(),
        }
    }

    /// Enters the block that opens at token `at`.
    pub fn enter(&mut self, at: usize, line: u32) -> Result<(), Error> {
        if self.open.len() == MAX_DEPTH {
            return Err(Error::new(line, format!("blocks are nested deeper than {MAX_DEPTH}")));
        }
        let mut scope = Scope::default();
        for (name, number) in self.labels.remove(&at).unwrap_or_default() {
            if scope.names.contains_key(&name) {
                let message = format!("label `{name}` stands twice in the block that starts here");
                return Err(Error::new(line, message));
            }
            scope.names.insert(name, Meaning::Label(number));
        }
        self.open.push(scope);
        Ok(())
    }

    /// Leaves the innermost block; false when it was the last.
    pub fn leave(&mut self) -> bool {
        self.open.pop();
        !self.open.is_empty()
    }

    /// `%r1`, or with a count `%r<5>`.
    pub fn declare_register(&mut self, name: &str, count: Option<u32>, r#type: Type) {
        let Some(scope) = self.open.last_mut() else { return };
        if let Some(count) = count {
            scope.families.insert(name.to_owned(), (count, r#type));
        } else {
            scope.names.insert(name.to_owned(), Meaning::Register(self.registers.len() as u32));
            self.registers.push((name.to_owned(), r#type));
        }
    }

    /// The name by which the variable is known in the function.
    pub fn declare_variable(&mut self, name: &str) -> String {
        let mut unique = name.to_owned();
        for n in 1.. {
            if self.taken.insert(unique.clone()) {
                break;
            }
            unique = format!("{name}#{n}");
        }
        if let Some(scope) = self.open.last_mut() {
            scope.names.insert(name.to_owned(), Meaning::Variable(unique.clone()));
        }
        unique
    }

    pub fn declare_table(&mut self, name: &str, labels: Vec<u32>) {
        if let Some(scope) = self.open.last_mut() {
            scope.names.insert(name.to_owned(), Meaning::Table(labels));
        }
    }

    /// The number of a label of the innermost block.
    pub fn label(&self, name: &str) -> Option<u32> {
        match self.open.last()?.names.get(name) {
            Some(Meaning::Label(number)) => Some(*number),
            _ => None,
        }
    }

    /// The innermost meaning of a name.
    pub fn resolve(&mut self, name: &str) -> Option<Operand> {
        for scope in self.open.iter_mut().rev() {
            let meaning = match scope.names.get(name) {
                Some(meaning) => meaning.clone(),
                None => {
                    let Some(r#type) = member(&scope.families, name) else { continue };
                    let meaning = Meaning::Register(self.registers.len() as u32);
                    self.registers.push((name.to_owned(), r#type));
                    scope.names.insert(name.to_owned(), meaning.clone());
                    meaning
                }
            };
            return Some(match meaning {
                Meaning::Register(number) => Operand::Register(number),
                Meaning::Variable(unique) => Operand::Symbol(unique, 0),
                Meaning::Label(number) => Operand::Label(number),
                Meaning::Table(labels) => {
                    Operand::List(labels.into_iter().map(Operand::Label).collect())
                }
            });
        }
        None
    }
}

/// The type of `%r12` where `%r<115>` or `%r1<5>` is declared.
fn member(families: &HashMap<String, (u32, Type)>, name: &str) -> Option<Type> {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count().min(10);
    (name.len() - digits..name.len()).find_map(|split| {
        let (prefix, digits) = name.split_at(split);
        let &(count, r#type) = families.get(prefix)?;
        let is_canonical = digits == "0" || !digits.starts_with('0');
        (is_canonical && digits.parse::<u32>().ok()? < count).then_some(r#type)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_hold_what_they_count() {
        let families = [("%r", (115, Type::B32)), ("%q1", (5, Type::B64))];
        let families = families.map(|(prefix, found)| (prefix.to_owned(), found)).into();
        for (name, found) in [
            ("%r0", Some(Type::B32)),
            ("%r114", Some(Type::B32)),
            ("%r115", None),
            ("%r01", None),
            ("%r", None),
            ("%q12", Some(Type::B64)),
            ("%q1", None),
            ("%q15", None),
            ("%s1", None),
            ("%r99999999999999999999", None),
        ] {
            assert_eq!(member(&families, name), found, "{name}");
        }
    }
}
