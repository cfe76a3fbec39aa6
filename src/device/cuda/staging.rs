//! Host data on its way to the GPU while kernels run: a ring of slots, each twice, in pinned host
//! memory and on the GPU.
//!
//! ```text
//! host      fill 0 | fill 1 | fill 2 ...       waits until the copy of the slot's last turn is done
//! copy      ------ | copy 0 | copy 1 ...       waits until the kernels of the slot's last turn are done
//! compute   ------ | ------ | work 0 ...       waits until its copy is done
//! ```
//! Nobody else waits for anybody: with two slots a pack is copied while the one before is computed.
//! Addresses are those of the slot: a graph is recorded once per slot.

use cudarc::driver::result;

use super::Cuda;
use super::driver::Told;
use super::stream::Event;
use crate::device::arena::{Arena, Plan};
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};

/// A ring of slots, all of one plan.
pub struct Staging {
    cuda: Cuda,
    slots: Vec<Slot>,
    /// Bytes of a slot.
    bytes: usize,
    /// Turns that were sent, and received.
    sent: usize,
    received: usize,
}

/// One buffer per span of the plan, in its order.
struct Slot {
    host: Vec<Buffer>,
    device: Vec<Buffer>,
    /// The copy of the last turn is done.
    copied: Event,
    /// What read it on the compute stream is done.
    used: Event,
}

impl Staging {
    /// A ring of `slots` slots of `plan`. Errors: not enough memory, here or there; no slot at all.
    pub fn new(cuda: Cuda, plan: &Plan, slots: usize) -> Result<Staging> {
        if slots == 0 {
            return Err(Error::argument("staging", "a ring of 0 slots, expected 1 or more"));
        }
        let slot = || {
            Ok(Slot {
                host: Arena::pinned(cuda, plan)?.take_all(),
                device: Arena::new(Device::Cuda(cuda), plan)?.take_all(),
                copied: Event::new(cuda)?,
                used: Event::new(cuda)?,
            })
        };
        let slots = (0..slots).map(|_| slot()).collect::<Result<_>>()?;
        Ok(Staging { cuda, slots, bytes: plan.total(), sent: 0, received: 0 })
    }

    /// Lets `fill` write the next slot on the host, which holds what it held a round ago, and starts
    /// its copy.
    ///
    /// Errors: those of `fill`, which leave the slot unsent; a ring whose slots all wait to be received.
    pub fn send(&mut self, fill: impl FnOnce(&mut [Buffer]) -> Result<()>) -> Result<()> {
        let count = self.slots.len();
        if self.sent - self.received == count {
            let message = format!("{count} slots are filled and not received; receive one first");
            return Err(Error::argument("staging::send", message));
        }
        let slot = &mut self.slots[self.sent % count];
        slot.copied.synchronize()?;
        fill(&mut slot.host)?;
        let stream = self.cuda.0.copy.0;
        slot.used.holds_back(stream)?;
        if let (Some(to), Some(from)) = (slot.device.first_mut(), slot.host.first()) {
            let to = to.view_mut().as_mut_ptr() as u64;
            // SAFETY: the spans of a slot lie in one allocation of `bytes` from the first one on; the
            // host writes them again only when the copy is done.
            let copied = unsafe {
                let from = std::slice::from_raw_parts(from.view().as_ptr(), self.bytes);
                result::memcpy_htod_async(to, from, stream)
            };
            copied.told(self.cuda, "copying to the GPU")?;
        }
        slot.copied.record(stream)?;
        self.sent += 1;
        Ok(())
    }

    /// Calls `work` with the number of the slot that was sent longest ago and its buffers on the GPU: what
    /// it puts on the compute stream finds them copied. When that is done, the slot is filled anew.
    ///
    /// Errors: those of `work`; nothing was sent.
    pub fn receive<T>(&mut self, work: impl FnOnce(usize, &[Buffer]) -> Result<T>) -> Result<T> {
        if self.sent == self.received {
            return Err(Error::argument("staging::receive", "nothing was sent; send first"));
        }
        let number = self.received % self.slots.len();
        let slot = &self.slots[number];
        self.cuda.on_stream(|compute| slot.copied.holds_back(compute))?;
        self.received += 1;
        let result = work(number, &slot.device);
        self.cuda.on_stream(|compute| slot.used.record(compute))?;
        result
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Pinned memory must outlive its copies.
        for slot in &self.slots {
            let _ = slot.copied.synchronize();
        }
    }
}
