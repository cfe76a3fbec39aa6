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

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUstream;

use super::Cuda;
use super::driver::Told;
use super::stream::Event;
use crate::device::arena::{Arena, Plan, Span};
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A ring of slots, all of one plan.
pub struct Staging {
    cuda: Cuda,
    slots: Vec<Slot>,
    /// Turns that were sent, and received.
    sent: usize,
    received: usize,
}

/// One buffer per span of the plan, in its order.
struct Slot {
    host: Vec<Buffer>,
    device: Vec<Buffer>,
    /// The copies of the last turn are done.
    copied: Event,
    /// What read them on the compute stream is done.
    used: Event,
}

impl Staging {
    /// A ring of slots of `plan`; on the GPU slot `i` has the buffers `device[i]`, one per span.
    ///
    /// Errors: no slot; a buffer elsewhere, or of another shape or type; too little memory on the host.
    pub fn new(cuda: Cuda, plan: &Plan, device: Vec<Vec<Buffer>>) -> Result<Staging> {
        let fits = |buffers: &[Buffer]| {
            let fits = |(buffer, span): (&Buffer, &Span)| {
                let view = buffer.view();
                (view.device(), view.dtype(), view.shape())
                    == (Device::Cuda(cuda), span.dtype, span.shape)
            };
            buffers.len() == plan.spans().len() && buffers.iter().zip(plan.spans()).all(fits)
        };
        if device.is_empty() || !device.iter().all(|buffers| fits(buffers)) {
            let message = format!("expected slots with the buffers of the plan on {cuda}");
            return Err(Error::argument("staging::new", message));
        }
        let slot = |device| {
            let host = Arena::pinned(cuda, plan)?.take_all();
            let (copied, used) = (Event::new(cuda)?, Event::new(cuda)?);
            Ok(Slot { host, device, copied, used })
        };
        let slots = device.into_iter().map(slot).collect::<Result<_>>()?;
        Ok(Staging { cuda, slots, sent: 0, received: 0 })
    }

    /// Lets `fill` write the next slot on the host, which holds what it held a round ago, and starts
    /// its copies.
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
        let copied = slot.copy(stream);
        // Also when one failed: others may be under way.
        slot.copied.record(stream)?;
        copied.told(self.cuda, "copying to the GPU")?;
        self.sent += 1;
        Ok(())
    }

    /// Calls `work` with the number of the slot that was sent longest ago and its tensors on the GPU:
    /// what it puts on the compute stream finds them copied. When that is done, the slot is filled
    /// anew.
    ///
    /// Errors: those of `work`; nothing was sent.
    pub fn receive<T>(
        &mut self,
        work: impl FnOnce(usize, &[Tensor<'_>]) -> Result<T>,
    ) -> Result<T> {
        if self.sent == self.received {
            return Err(Error::argument("staging::receive", "nothing was sent; send first"));
        }
        let number = self.received % self.slots.len();
        let slot = &self.slots[number];
        self.cuda.on_stream(|compute| slot.copied.holds_back(compute))?;
        self.received += 1;
        let tensors: Vec<Tensor<'_>> = slot.device.iter().map(Buffer::view).collect();
        let result = work(number, &tensors);
        self.cuda.on_stream(|compute| slot.used.record(compute))?;
        result
    }
}

impl Slot {
    fn copy(&mut self, stream: CUstream) -> std::result::Result<(), DriverError> {
        for (host, device) in self.host.iter().zip(&mut self.device) {
            let (to, bytes) = (device.view_mut().as_mut_ptr() as u64, host.bytes());
            if bytes > 0 {
                // SAFETY: both hold these bytes; the host's are written again, or freed, only when
                // the copy is done.
                unsafe {
                    let from = std::slice::from_raw_parts(host.view().as_ptr(), bytes);
                    result::memcpy_htod_async(to, from, stream)?;
                }
            }
        }
        Ok(())
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
