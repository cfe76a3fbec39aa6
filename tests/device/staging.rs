//! The loader's ring: what is sent arrives, in order, and slots are used again.

use std::process::Command;

use half::bf16;
use silkie::device::arena::{Arena, Plan};
use silkie::device::cuda::{Cuda, Staging};
use silkie::device::{Buffer, Device};
use silkie::ops::{Write, matmul};
use silkie::tensor::{DType, Tensor, TensorMut};
use silkie::{Error, Result};

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

/// The host waits for no result before the last turn, so that fills, copies and kernels may overlap.
#[test]
fn turns_that_overlap_arrive_whole() {
    let Some(cuda) = support::cuda() else { return };
    let device = Device::Cuda(cuda);
    let mut ones = Buffer::on(device, DType::Bf16, 4, 1).unwrap();
    ones.upload(Tensor::new(&[bf16::ONE; 4], 4, 1)).unwrap();
    for slots in 1..4 {
        let mut ring = ring(cuda, slots);
        let sums = (0..10).map(|_| Buffer::on(device, DType::F32, 1, 8).unwrap());
        let mut sums: Vec<Buffer> = sums.collect();
        for (turn, sum) in sums.iter_mut().enumerate() {
            send(&mut ring, turn as u32).unwrap();
            let received = ring.receive(|_, tensors| {
                matmul::tn(ones.view(), tensors[2], sum.view_mut(), 0.25, Write::Overwrite)
            });
            received.unwrap();
        }
        for (turn, sum) in sums.iter().enumerate() {
            let mut values = [f32::NAN; 8];
            sum.download(TensorMut::new(&mut values, 1, 8)).unwrap();
            assert_eq!(values, [turn as f32; 8], "{slots} slots, turn {turn}");
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

/// Who waits for whom, from the emulated driver's log of a process that runs this very test.
#[test]
fn copies_and_work_wait_for_each_other() {
    const NAME: &str = "device::staging::copies_and_work_wait_for_each_other";
    const INSIDE: &str = "SILKIE_TEST_LOGGED";
    let Some(cuda) = support::cuda() else { return };
    if std::env::var_os(INSIDE).is_some() {
        let mut ring = ring(cuda, 2);
        for turn in 0..4 {
            send(&mut ring, turn).unwrap();
            ring.receive(|_, _| cuda.synchronize()).unwrap();
        }
        return;
    }
    if !support::is_emulated() {
        return support::skip("this driver keeps no log");
    }
    let mut logged = Command::new(std::env::current_exe().unwrap());
    logged.args(["--exact", NAME, "--nocapture"]).env(INSIDE, "1").env("CUDA_EMULATOR_LOG", "1");
    let output = logged.output().unwrap();
    assert!(output.status.success());
    let log = String::from_utf8(output.stderr).unwrap();
    let calls: Vec<Call> = log.lines().filter_map(Call::read).collect();
    let first = calls.iter().position(|call| call.name == "cuEventSynchronize").unwrap();
    let events = |name: &str, step: usize| -> Vec<&str> {
        let calls = calls[first..].iter().filter(|call| call.name == name);
        calls.step_by(step).take(2).map(|call| call.argument("event")).collect()
    };
    // Of the two waits of a turn the copy's comes first.
    let (copied, used) = (events("cuEventSynchronize", 1), events("cuStreamWaitEvent", 2));
    let mut all = [copied.clone(), used.clone()].concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4, "two events per slot: {all:?}");
    let copy = calls[first + 1].argument("stream");
    let compute = calls.iter().find(|call| call.name == "cuStreamSynchronize").unwrap();
    let compute = compute.argument("stream");
    assert_ne!(copy, compute);

    let mut expected = Vec::new();
    for slot in [0, 1, 0, 1] {
        let (copied, used) = (copied[slot], used[slot]);
        expected.extend([
            format!("cuEventSynchronize {copied}"),
            format!("cuStreamWaitEvent {copy} {used}"),
            format!("cuMemcpyHtoDAsync_v2 {copy}"),
            format!("cuMemcpyHtoDAsync_v2 {copy}"),
            format!("cuEventRecord {copied} {copy}"),
            format!("cuStreamWaitEvent {compute} {copied}"),
            format!("cuStreamSynchronize {compute}"),
            format!("cuEventRecord {used} {compute}"),
        ]);
    }
    let told: Vec<String> = calls[first..].iter().filter_map(Call::told).collect();
    assert_eq!(told[..expected.len()], expected);
    // Pinned memory is freed when its copies are done.
    let end = copied.iter().map(|event| format!("cuEventSynchronize {event}"));
    assert_eq!(told[expected.len()..], end.collect::<Vec<_>>());
}

/// A line of the log: `cuda-emulator: NAME(argument: value, …) = CUDA_SUCCESS`.
struct Call<'l> {
    name: &'l str,
    arguments: &'l str,
}

impl<'l> Call<'l> {
    fn read(line: &'l str) -> Option<Call<'l>> {
        let (call, _) = line.strip_prefix("cuda-emulator: ")?.split_once(") = ")?;
        let (name, arguments) = call.split_once('(')?;
        Some(Call { name, arguments })
    }

    fn argument(&self, name: &str) -> &'l str {
        let mut arguments = self.arguments.split(", ").filter_map(|pair| pair.split_once(": "));
        arguments.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    /// What matters for the order.
    fn told(&self) -> Option<String> {
        let keys: &[&str] = match self.name {
            "cuEventSynchronize" => &["event"],
            "cuStreamWaitEvent" => &["stream", "event"],
            "cuEventRecord" => &["event", "stream"],
            "cuMemcpyHtoDAsync_v2" | "cuStreamSynchronize" => &["stream"],
            _ => return None,
        };
        let values = keys.iter().map(|key| self.argument(key));
        Some(std::iter::once(self.name).chain(values).collect::<Vec<_>>().join(" "))
    }
}
