//! An interpreter of pickles that can build tensors and nothing else.
//!
//! A pickle is a program for a small stack machine, and `GLOBAL` lets it name any Python function
//! and `REDUCE` call it. Here a name outside the short list of [`Global`] ends the reading with an
//! error that says it; nothing is ever executed. Values live in one arena and refer to each other
//! by index, so that no nesting, sharing or cycle costs more than its opcode.
//!
//! Opcodes: <https://docs.python.org/3/library/pickletools.html>, protocols 2 to 5 as far as
//! `torch.save` and its peers use them on a state dict.

mod op;

use std::collections::HashMap;

use crate::tensor::DType;

/// Where in a storage a tensor lies, all in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorRef {
    pub(super) name: String,
    pub(super) dtype: DType,
    /// Name of the storage in the archive.
    pub(super) key: String,
    /// Elements of the storage.
    pub(super) storage: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

/// The tensors of a pickled state dict, in its order. The error says where and why.
pub(super) fn tensors(pickle: &[u8]) -> Result<Vec<TensorRef>, String> {
    let mut machine = Machine { input: pickle, ..Machine::default() };
    let root = loop {
        let at = machine.at;
        match machine.step().map_err(|e| format!("byte {at}: {e}"))? {
            None => {}
            Some(root) => break root,
        }
    };
    let Node::Dict(items) = &machine.nodes[root] else {
        return Err("expected a dict of tensors".into());
    };
    items.iter().map(|&(key, value)| machine.tensor(key, value)).collect()
}

/// The only names that a pickle may use.
#[derive(Clone, Copy)]
enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage`, `torch.BFloat16Storage`, `torch.HalfStorage`
    Storage(DType),
}

/// Index of a value in the arena.
type Id = usize;

enum Node<'a> {
    /// None, a flag, a float: may stand where its value does not matter.
    Other,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    /// No tensor is inside one.
    List,
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage {
        dtype: DType,
        key: &'a str,
        elements: usize,
    },
    Tensor {
        storage: Id,
        offset: usize,
        shape: Vec<usize>,
        stride: Vec<usize>,
    },
}

#[derive(Default)]
struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at each open MARK.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Executes one opcode; gives the result at STOP.
    fn step(&mut self) -> Result<Option<Id>, String> {
        match self.byte()? {
            op::PROTO => drop(self.byte()?),
            op::FRAME => drop(self.take(8)?),
            op::STOP => return self.pop().map(Some),
            op::MARK => self.marks.push(self.stack.len()),
            op::POP => drop(self.pop()?),
            op::POP_MARK => drop(self.pop_mark()?),
            op::NONE => self.push(Node::Other),
            op::NEWTRUE | op::NEWFALSE => self.push(Node::Other),
            op::BINFLOAT => {
                self.take(8)?;
                self.push(Node::Other);
            }
            op::BININT => self.int(i32::from_le_bytes)?,
            op::BININT1 => self.int(u8::from_le_bytes)?,
            op::BININT2 => self.int(u16::from_le_bytes)?,
            op::LONG1 => self.long()?,
            op::BINUNICODE => self.text(4)?,
            op::SHORT_BINUNICODE => self.text(1)?,
            op::BINUNICODE8 => self.text(8)?,
            op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            op::EMPTY_LIST => self.push(Node::List),
            op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            op::TUPLE1 => self.tuple(1)?,
            op::TUPLE2 => self.tuple(2)?,
            op::TUPLE3 => self.tuple(3)?,
            op::TUPLE => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            op::APPEND => {
                self.pop()?;
                self.expect_list()?;
            }
            op::APPENDS => {
                self.pop_mark()?;
                self.expect_list()?;
            }
            op::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_mark()?;
                self.insert(&items)?;
            }
            op::BINPUT => self.put(1)?,
            op::LONG_BINPUT => self.put(4)?,
            op::MEMOIZE => {
                let next = self.memo.len() as u32;
                self.memo.insert(next, self.top()?);
            }
            op::BINGET => self.get(1)?,
            op::LONG_BINGET => self.get(4)?,
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                self.global(self.as_text(module)?, self.as_text(name)?)?;
            }
            op::INST => return Err(refused(self.line()?, self.line()?)),
            op::BINPERSID => self.persistent()?,
            op::REDUCE => self.reduce()?,
            op::BUILD => self.build()?,
            other => return Err(format!("opcode {other:#04x} is not used by weights")),
        }
        Ok(None)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.input.len());
        let end = end.ok_or("the pickle ends in the middle")?;
        let bytes = &self.input[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.input[self.at..];
        let end = rest.iter().position(|&b| b == b'\n').ok_or("the pickle ends in a name")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a name that is not UTF-8".into())
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    /// The top of the stack, unless a MARK lies on it.
    fn top(&self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.get(floor..).and_then(<[Id]>::last);
        above.copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let floor = self.marks.pop().ok_or("no MARK on the stack")?;
        Ok(self.stack.split_off(floor))
    }

    fn int<const N: usize, I: Into<i64>>(
        &mut self,
        decode: fn([u8; N]) -> I,
    ) -> Result<(), String> {
        let value = decode(self.array()?).into();
        self.push(Node::Int(value));
        Ok(())
    }

    /// A little-endian two's complement number of up to 8 bytes.
    fn long(&mut self) -> Result<(), String> {
        let n = self.byte()? as usize;
        let bytes = self.take(n)?;
        if n > 8 {
            return Err(format!("a number of {n} bytes"));
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        value[..n].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(value)));
        Ok(())
    }

    fn text(&mut self, length_bytes: usize) -> Result<(), String> {
        let length = self.unsigned(length_bytes)?;
        let length = usize::try_from(length).map_err(|_| "text beyond all memory")?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "text is not UTF-8")?;
        self.push(Node::Text(text));
        Ok(())
    }

    fn tuple(&mut self, n: usize) -> Result<(), String> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn expect_list(&self) -> Result<(), String> {
        match self.nodes[self.top()?] {
            Node::List => Ok(()),
            _ => Err("items for something that is no list".into()),
        }
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.top()?;
        match &mut self.nodes[dict] {
            Node::Dict(dict) if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err("items for something that is no dict".into()),
        }
        Ok(())
    }

    /// An unsigned little-endian number of `n` <= 8 bytes.
    fn unsigned(&mut self, n: usize) -> Result<u64, String> {
        let mut bytes = [0; 8];
        bytes[..n].copy_from_slice(self.take(n)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn put(&mut self, index_bytes: usize) -> Result<(), String> {
        let index = self.unsigned(index_bytes)? as u32;
        self.memo.insert(index, self.top()?);
        Ok(())
    }

    fn get(&mut self, index_bytes: usize) -> Result<(), String> {
        let index = self.unsigned(index_bytes)? as u32;
        let id = self.memo.get(&index).ok_or_else(|| format!("memo {index} is not set"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let global = match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "FloatStorage") => Global::Storage(DType::F32),
            ("torch", "BFloat16Storage") => Global::Storage(DType::Bf16),
            ("torch", "HalfStorage") => Global::Storage(DType::F16),
            _ => return Err(refused(module, name)),
        };
        self.push(Node::Global(global));
        Ok(())
    }

    /// `("storage", type, key, device, elements)`: a storage in the archive.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let [kind, class, key, _device, elements] = self.as_tuple(id, "a storage")?;
        let Node::Global(Global::Storage(dtype)) = self.nodes[class] else {
            return Err("a storage of no float type".into());
        };
        if self.as_text(kind)? != "storage" {
            return Err("a persistent id that is no storage".into());
        }
        let (key, elements) = (self.as_text(key)?, self.as_size(elements)?);
        self.push(Node::Storage { dtype, key, elements });
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let Node::Global(global) = self.nodes[callable] else {
            return Err("a call of something that is no function".into());
        };
        let Node::Tuple(args) = &self.nodes[args] else {
            return Err("a call without a tuple of arguments".into());
        };
        match (global, args.as_slice()) {
            (Global::OrderedDict, []) => self.push(Node::Dict(Vec::new())),
            (Global::RebuildParameter, &[data, ..]) => self.stack.push(data),
            (Global::RebuildTensor, &[storage, offset, shape, stride, ..]) => {
                let offset = self.as_size(offset)?;
                let (shape, stride) = (self.as_sizes(shape)?, self.as_sizes(stride)?);
                self.push(Node::Tensor { storage, offset, shape, stride });
            }
            _ => return Err("a call with arguments that weights do not have".into()),
        }
        Ok(())
    }

    /// Attributes of an object: an ordered dict has `_metadata`, which holds version numbers.
    fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.nodes[self.top()?] {
            Node::Dict(_) => Ok(()),
            _ => Err("attributes for something that is no dict".into()),
        }
    }

    fn as_text(&self, id: Id) -> Result<&'a str, String> {
        match self.nodes[id] {
            Node::Text(text) => Ok(text),
            _ => Err("expected text".into()),
        }
    }

    fn as_size(&self, id: Id) -> Result<usize, String> {
        match self.nodes[id] {
            Node::Int(n) => usize::try_from(n).map_err(|_| format!("expected a size, got {n}")),
            _ => Err("expected a size".into()),
        }
    }

    fn as_sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        match &self.nodes[id] {
            Node::Tuple(items) => items.iter().map(|&item| self.as_size(item)).collect(),
            _ => Err("expected a tuple of sizes".into()),
        }
    }

    fn as_tuple<const N: usize>(&self, id: Id, what: &str) -> Result<[Id; N], String> {
        match &self.nodes[id] {
            Node::Tuple(items) => items.as_slice().try_into().ok(),
            _ => None,
        }
        .ok_or_else(|| format!("expected {what}: a tuple of {N}"))
    }

    /// An entry of the state dict.
    fn tensor(&self, key: Id, value: Id) -> Result<TensorRef, String> {
        let name = self.as_text(key)?.to_string();
        let Node::Tensor { storage, offset, shape, stride } = &self.nodes[value] else {
            return Err(format!("entry {name}: expected a tensor"));
        };
        let Node::Storage { dtype, key, elements } = self.nodes[*storage] else {
            return Err(format!("tensor {name}: it has no storage"));
        };
        let (shape, stride) = (shape.clone(), stride.clone());
        let key = key.to_string();
        Ok(TensorRef { name, dtype, key, storage: elements, offset: *offset, shape, stride })
    }
}

fn refused(module: &str, name: &str) -> String {
    let full: String = format!("{module}.{name}").chars().take(120).collect();
    format!(
        "it asks for {full}, which is no part of a tensor; refused, nothing was executed: convert \
         the file to safetensors if you trust it"
    )
}
