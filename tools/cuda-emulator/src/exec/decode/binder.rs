//! Operands of the text to operands of the program: registers to slots, values that are known to constants.

use std::collections::HashMap;

use crate::exec::allocate::{Allocation, Class};
use crate::exec::lanes::{LANES, Width};
use crate::exec::program::{Operand, Slot, Special};
use crate::ptx::ast::{Operand as Text, Register, Space, Type};

/// What a name in the text stands for: an address in a space.
#[derive(Clone, Copy)]
pub struct Symbol {
    pub space: Space,
    pub address: u64,
}

/// The slots and constants of a program in the making.
pub struct Binder<'a> {
    registers: &'a [(String, Type)],
    /// Slot or predicate of each register.
    places: Vec<Operand>,
    /// The registers that were bound since somebody last took them.
    pub named: Named,
    symbols: &'a HashMap<String, Symbol>,
    pub slots: usize,
    pub predicates: usize,
    pub constants: Vec<Slot>,
    known: HashMap<(u64, Width), Operand>,
    pub specials: Vec<(Special, Operand)>,
    /// Where results go that nobody wants.
    sinks: [Operand; 2],
}

/// Registers that an instruction reads and writes.
#[derive(Default)]
pub struct Named {
    pub uses: Vec<Register>,
    pub defs: Vec<Register>,
}

/// Slots, predicates or constants at most, so that an operand can name them, and one bit is left.
const MOST: u32 = Operand::CONSTANT as u32;
/// Two slots are a sink of 64 bits.
const SINK_SLOTS: u32 = 2;
/// Predicate 0 is true, predicate 1 a sink, predicate 2 the carry, the others for use within one instruction.
const OWN_PREDICATES: u32 = 5;
const SINK_PREDICATE: Operand = Operand(1);
pub const CARRY: Operand = Operand(2);
pub const SCRATCH: [Operand; 2] = [Operand(3), Operand(4)];

impl<'a> Binder<'a> {
    /// Without an allocation only to find out what is named: then all registers lie in one place.
    pub fn new(
        registers: &'a [(String, Type)],
        symbols: &'a HashMap<String, Symbol>,
        allocation: &Allocation,
    ) -> Result<Self, String> {
        let slots = allocation.slots + SINK_SLOTS;
        let predicates = allocation.predicates + OWN_PREDICATES;
        if slots.max(predicates) > MOST {
            return Err(format!(
                "{slots} slots of registers are more than the emulator has room for"
            ));
        }
        let mut places = vec![Operand::default(); registers.len()];
        for ((_, r#type), (place, &at)) in
            registers.iter().zip(places.iter_mut().zip(&allocation.places))
        {
            let first = if *r#type == Type::Pred { OWN_PREDICATES } else { SINK_SLOTS };
            *place = Operand((at + first) as u16);
        }
        Ok(Binder {
            registers,
            places,
            named: Named::default(),
            symbols,
            slots: slots as usize,
            predicates: predicates as usize,
            constants: Vec::new(),
            known: HashMap::new(),
            specials: Vec::new(),
            sinks: [Operand(0), SINK_PREDICATE],
        })
    }

    /// What each register takes up. Errors: one has a type that registers cannot have.
    pub fn classes(registers: &[(String, Type)]) -> Result<Vec<Class>, String> {
        let class = |(name, r#type): &(String, Type)| match width(*r#type) {
            Some(Width::Predicate) => Ok(Class::Predicate),
            Some(Width::B64) => Ok(Class::Slots(2)),
            Some(Width::B16 | Width::B32) => Ok(Class::Slots(1)),
            None => {
                Err(format!("register {name} is of a type that is not supported: {:?}", r#type))
            }
        };
        registers.iter().map(class).collect()
    }

    /// How wide a register is; `None` of other operands.
    pub fn register_width(&self, text: &Text) -> Option<Width> {
        match text {
            Text::Register(register) | Text::Not(register) => {
                width(self.registers.get(*register as usize)?.1)
            }
            _ => None,
        }
    }

    /// A register to write, or the sink for `_`.
    pub fn result(&mut self, text: &Text, wanted: Width) -> Result<Operand, String> {
        match text {
            Text::Sink => Ok(self.sink(wanted)),
            Text::Register(register) => {
                self.named.defs.push(*register);
                self.register(*register, wanted)
            }
            _ => Err("expected a register for the result".into()),
        }
    }

    /// A register that nobody reads.
    pub fn sink(&self, wanted: Width) -> Operand {
        self.sinks[(wanted == Width::Predicate) as usize]
    }

    /// A register, a special register, an address or a literal.
    pub fn source(&mut self, text: &Text, wanted: Width) -> Result<Operand, String> {
        match text {
            Text::Register(register) => {
                self.named.uses.push(*register);
                self.register(*register, wanted)
            }
            Text::Not(register) if wanted == Width::Predicate => {
                self.named.uses.push(*register);
                Ok(negated(self.register(*register, wanted)?))
            }
            Text::Special(name) => self.special(name, wanted),
            Text::Symbol(name, offset) => {
                let address = self.symbol(name)?.address.wrapping_add(*offset as u64);
                self.constant(address, wanted)
            }
            Text::Integer(value) => self.constant(*value as u64, wanted),
            Text::F32(bits) if wanted == Width::B32 => self.constant(*bits as u64, wanted),
            Text::F64(bits) if wanted == Width::B64 => self.constant(*bits, wanted),
            Text::F64(bits) if wanted == Width::B32 => {
                self.constant((f64::from_bits(*bits) as f32).to_bits() as u64, wanted)
            }
            _ => Err(format!("operand {text:?} is not supported here")),
        }
    }

    fn register(&self, register: Register, wanted: Width) -> Result<Operand, String> {
        let index = register as usize;
        let (Some((name, r#type)), Some(&place)) =
            (self.registers.get(index), self.places.get(index))
        else {
            return Err(format!("there is no register {register}"));
        };
        if width(*r#type) != Some(wanted) {
            return Err(format!("expected a register of {wanted:?}, {name} is {:?}", r#type));
        }
        Ok(place)
    }

    pub fn symbol(&self, name: &str) -> Result<Symbol, String> {
        self.symbols.get(name).copied().ok_or_else(|| format!("`{name}` has no address"))
    }

    /// A value that is the same in all lanes.
    pub fn constant(&mut self, value: u64, wanted: Width) -> Result<Operand, String> {
        let value = match wanted {
            Width::Predicate if value & 1 != 0 => return Ok(Operand::TRUE),
            Width::Predicate => return Ok(negated(Operand::TRUE)),
            Width::B16 => value & 0xffff,
            Width::B32 => value & 0xffff_ffff,
            Width::B64 => value,
        };
        if let Some(&operand) = self.known.get(&(value, wanted)) {
            return Ok(operand);
        }
        let words = [value as u32, (value >> 32) as u32];
        let operand = match wanted {
            Width::B64 => {
                // 32 lanes of 64 bits, low word first.
                let lanes = Slot(std::array::from_fn(|i| words[i % 2]));
                let operand = self.lanes(lanes)?;
                self.constants.push(lanes);
                operand
            }
            _ => self.lanes(Slot([words[0]; LANES]))?,
        };
        self.known.insert((value, wanted), operand);
        Ok(operand)
    }

    /// A constant for each lane.
    fn lanes(&mut self, lanes: Slot) -> Result<Operand, String> {
        let at = self.constants.len();
        if at + 2 > MOST as usize {
            return Err("the constants are more than the emulator has room for".into());
        }
        self.constants.push(lanes);
        Ok(Operand(at as u16 | Operand::CONSTANT))
    }

    fn special(&mut self, name: &str, wanted: Width) -> Result<Operand, String> {
        if wanted != Width::B32 {
            return Err(format!("{name} has 32 bits, expected {wanted:?}"));
        }
        let of_lane = |f: fn(u32) -> u32| Slot(std::array::from_fn(|lane| f(lane as u32)));
        let lanes = match name {
            "%laneid" => Some(of_lane(|lane| lane)),
            "%lanemask_eq" => Some(of_lane(|lane| 1 << lane)),
            "%lanemask_lt" => Some(of_lane(|lane| (1 << lane) - 1)),
            "%lanemask_le" => Some(of_lane(|lane| !0 >> (31 - lane))),
            "%lanemask_gt" => Some(of_lane(|lane| !(!0 >> (31 - lane)))),
            "%lanemask_ge" => Some(of_lane(|lane| !0 << lane)),
            // One multiprocessor runs one grid.
            "%smid" | "%gridid" => Some(of_lane(|_| 0)),
            "%nsmid" => Some(of_lane(|_| 1)),
            _ => None,
        };
        if let Some(lanes) = lanes {
            return self.lanes(lanes);
        }
        let special = special(name).ok_or_else(|| format!("{name} is not supported"))?;
        if let Some((_, operand)) = self.specials.iter().find(|(known, _)| *known == special) {
            return Ok(*operand);
        }
        let operand = Operand(self.slots as u16);
        if self.slots >= MOST as usize {
            return Err("the registers are more than the emulator has room for".into());
        }
        self.slots += 1;
        self.specials.push((special, operand));
        Ok(operand)
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| ["x", "y", "z"].iter().position(|axis| *axis == name).map(|i| i as u8);
    Some(match name {
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::WarpCount,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        _ => match name.split_once('.')? {
            ("%tid", rest) => Special::Thread(axis(rest)?),
            ("%ntid", rest) => Special::BlockSize(axis(rest)?),
            ("%ctaid", rest) => Special::Block(axis(rest)?),
            ("%nctaid", rest) => Special::GridSize(axis(rest)?),
            _ => return None,
        },
    })
}

/// The complement of a predicate.
pub fn negated(predicate: Operand) -> Operand {
    Operand(predicate.0 ^ Operand::NEGATED)
}

/// How wide the registers of a type are; `None`: there are none.
pub fn width(r#type: Type) -> Option<Width> {
    Some(match (r#type, r#type.bytes()) {
        (Type::Pred, _) => Width::Predicate,
        // A byte has no registers of its own width.
        (_, 1 | 2) => Width::B16,
        (_, 4) => Width::B32,
        (_, 8) => Width::B64,
        _ => return None,
    })
}
