//! The loader's ring: what is sent arrives, in order, and slots are used again.

use silkie::device::arena::{Arena, Plan};
use silkie::device::cuda::{Cuda, Staging};
use silkie::device::{Buffer, Device};
use silkie::ops::{Write, matmul};
use silkie::tensor::{DType, Tensor, TensorMut};
use silkie::{Error, Result};

use half::bf16;

use crate::support;

fn plan() -> Plan {
    let mut plan = Plan::default();
    plan.add("ids", DType::U32, 5, 1);
    plan.add("none", DType::U8, 0, 3);
    plan.add("x", DType::Bf16, 4, 8);
    plan
}

fn ring(cuda: Cuda, slots: usize) -> Staging {
    let mut all = Plan::default();
    (0..slots).for_each(|_| drop(all.append("", &plan())));
    let mut buffers = Arena::new(Device::Cuda(cuda), &all).unwrap().take_all().into_iter();
    let slots = (0..slots).map(|_| buffers.by_ref().take(3).collect()).collect();
    Staging::new(cuda, &plan(), slots).unwrap()
}

fn send(ring: &mut Staging, turn: u32) -> Result<()> {
    ring.send(|buffers| {
        buffers[0].view_mut().fill(turn);
        buffers[2].view_mut().fill(bf16::from_f32(turn as f32));
        Ok(())
    })
}

/// What arrived, seen by a product on the compute stream: `y = 1ᵀ x` sums the four equal rows of x.
fn receive(ring: &mut Staging, cuda: Cuda) -> (usize, Vec<f32>) {
    let device = Device::Cuda(cuda);
    let mut ones = Buffer::on(device, DType::Bf16, 4, 1).unwrap();
    ones.upload(Tensor::new(&[bf16::ONE; 4], 4, 1)).unwrap();
    let mut y = Buffer::on(device, DType::F32, 1, 8).unwrap();
    let slot = ring
        .receive(|slot, tensors| {
            assert_eq!(tensors[0].shape(), [5, 1]);
            matmul::tn(ones.view(), tensors[2], y.view_mut(), 0.25, Write::Overwrite)?;
            Ok(slot)
        })
        .unwrap();
    let mut values = vec![f32::NAN; 8];
    y.download(TensorMut::new(&mut values, 1, 8)).unwrap();
    (slot, values)
}

#[test]
fn turns_arrive_in_order_and_slots_are_used_again() {
    let Some(cuda) = support::cuda() else { return };
    for slots in 1..4 {
        let mut ring = ring(cuda, slots);
        let (mut sent, mut received) = (0, 0);
        while received < 10 {
            while sent < 10 && sent - received < slots {
                send(&mut ring, sent as u32).unwrap();
                sent += 1;
            }
            let expected = (received % slots, vec![received as f32; 8]);
            assert_eq!(receive(&mut ring, cuda), expected, "{slots} slots, turn {received}");
            received += 1;
        }
    }
}

#[test]
fn a_full_and_an_empty_ring_say_so() {
    let Some(cuda) = support::cuda() else { return };
    let mut ring = ring(cuda, 2);
    let error = ring.receive(|_, _| Ok(())).unwrap_err().to_string();
    assert_eq!(error, "staging::receive: nothing was sent; send first");
    send(&mut ring, 1).unwrap();
    let error = ring.send(|_| Err(Error::Run("no more records".into()))).unwrap_err();
    assert_eq!(error.to_string(), "no more records");
    send(&mut ring, 2).unwrap();
    let error = send(&mut ring, 3).unwrap_err().to_string();
    assert!(error.starts_with("staging::send: 2 slots are filled and not received"), "{error}");
    // Nothing of that was lost, and a slot whose work failed is free again.
    assert_eq!(receive(&mut ring, cuda).1, [1.0; 8]);
    let failed = ring.receive(|_, _| Err::<(), _>(Error::Run("not this one".into())));
    assert_eq!(failed.unwrap_err().to_string(), "not this one");
    send(&mut ring, 4).unwrap();
    assert_eq!(receive(&mut ring, cuda), (0, vec![4.0; 8]));
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    let Some(cuda) = support::cuda() else { return };
    let here = Arena::new(Device::Cpu, &plan()).unwrap().take_all();
    let mut fewer = Arena::new(Device::Cuda(cuda), &plan()).unwrap().take_all();
    fewer.pop();
    for slots in [vec![], vec![here], vec![fewer]] {
        let error = Staging::new(cuda, &plan(), slots).err().unwrap().to_string();
        let expected = "staging::new: expected slots with the buffers of the plan on cuda:0";
        assert_eq!(error, expected);
    }
}
