//! Memory of a GPU: allocated, filled, read, refused; and never touched by the host.

use half::bf16;
use silkie::device::arena::{Arena, Plan};
use silkie::device::{Buffer, Device};
use silkie::ops::interpolate;
use silkie::tensor::{DType, Tensor, TensorMut};

use crate::support::{self, random};

#[test]
fn what_is_uploaded_comes_back() {
    let Some(cuda) = support::cuda() else { return };
    for [rows, cols] in [[1, 1], [3, 5], [257, 129], [0, 7]] {
        let values = random(rows * cols, 1);
        let mut buffer = Buffer::on(Device::Cuda(cuda), DType::F32, rows, cols).unwrap();
        let mut back = vec![f32::NAN; rows * cols];
        buffer.download(TensorMut::new(&mut back, rows, cols)).unwrap();
        assert!(back.iter().all(|&x| x == 0.0), "a buffer starts as zeros");
        buffer.upload(Tensor::new(&values, rows, cols)).unwrap();
        buffer.download(TensorMut::new(&mut back, rows, cols)).unwrap();
        assert_eq!(back, values);
        assert_eq!(buffer.view().as_ptr().addr() % 256, 0);
    }
}

#[test]
fn copies_of_another_shape_or_place_are_refused() {
    let Some(cuda) = support::cuda() else { return };
    let mut buffer = Buffer::on(Device::Cuda(cuda), DType::Bf16, 2, 3).unwrap();
    let values = vec![bf16::ONE; 6];
    let error = buffer.upload(Tensor::new(&values, 3, 2)).unwrap_err().to_string();
    let expected = "buffer::upload: from is Bf16 [3, 2] on cpu, expected Bf16 [2, 3] on cpu, \
                    without gaps";
    assert_eq!(error, expected);
    let other = Buffer::on(Device::Cuda(cuda), DType::Bf16, 2, 3).unwrap();
    let error = buffer.upload(other.view()).unwrap_err().to_string();
    assert!(
        error.starts_with("buffer::upload: from is Bf16 [2, 3] on cuda:0, expected"),
        "{error}"
    );
}

#[test]
fn more_than_there_is_is_told_with_what_is_free() {
    let Some(cuda) = support::cuda() else { return };
    let error = Buffer::on(Device::Cuda(cuda), DType::U8, 1 << 30, 1 << 20).err().unwrap();
    let error = error.to_string();
    assert!(error.starts_with("cuda:0: no memory for 1073741824 MiB, "), "{error}");
    assert!(error.contains(" MiB are free; lower --token-budget"), "{error}");
    let buffer = Buffer::on(Device::Cuda(cuda), DType::U8, 1, 1);
    buffer.expect("memory is there for those who ask for less");
}

/// In release as well: it would be undefined behaviour out of safe code.
#[test]
fn the_host_cannot_touch_a_gpu() {
    let Some(cuda) = support::cuda() else { return };
    let buffer = || Buffer::on(Device::Cuda(cuda), DType::F32, 2, 2).unwrap();
    let refused = |touch: fn(Buffer)| {
        let panic = std::panic::catch_unwind(|| touch(buffer())).unwrap_err();
        assert_eq!(
            panic.downcast_ref::<String>().unwrap(),
            "memory of cuda:0 touched from the host"
        );
    };
    refused(|buffer| {
        buffer.view().row::<f32>(0);
    });
    refused(|buffer| {
        buffer.view().elements::<f32>();
    });
    refused(|mut buffer| buffer.view_mut().row::<f32>(0)[0] = 1.0);
    refused(|mut buffer| buffer.view_mut().elements::<f32>()[0] = 1.0);
    refused(|mut buffer| buffer.view_mut().fill(1.0f32));
}

/// Whichever of its arguments is on the GPU.
#[test]
fn an_op_without_a_kernel_says_so() {
    let Some(cuda) = support::cuda() else { return };
    let there = || Buffer::on(Device::Cuda(cuda), DType::F32, 4, 2).unwrap();
    let here = || Buffer::f32(4, 2);
    for (src, mut dst, name) in
        [(there(), there(), "src"), (there(), here(), "src"), (here(), there(), "dst")]
    {
        let error = interpolate::forward(src.view(), dst.view_mut()).unwrap_err().to_string();
        let expected = format!(
            "interpolate::forward: {name} is on cuda:0, where this op has no kernel yet; pass \
             --device cpu"
        );
        assert_eq!(error, expected);
    }
}

#[test]
fn an_arena_is_one_allocation_that_stays() {
    let Some(cuda) = support::cuda() else { return };
    let mut plan = Plan::default();
    let slots = [
        plan.add("a", DType::Bf16, 3, 5),
        plan.add("nothing", DType::F32, 0, 9),
        plan.add("b", DType::U32, 1, 100),
    ];
    let mut arena = Arena::new(Device::Cuda(cuda), &plan).unwrap();
    let [mut a, nothing, mut b] = slots.map(|slot| arena.take(slot));
    drop(arena);
    let address = |buffer: &Buffer| buffer.view().as_ptr().addr();
    assert_eq!([address(&b) - address(&a), address(&nothing) - address(&a)], [256, 256]);
    let ones = [bf16::ONE; 15];
    a.upload(Tensor::new(&ones, 3, 5)).unwrap();
    let numbers: Vec<u32> = (0..100).collect();
    b.upload(Tensor::vector(&numbers)).unwrap();
    let (mut back_a, mut back_b) = ([bf16::ZERO; 15], vec![0u32; 100]);
    a.download(TensorMut::new(&mut back_a, 3, 5)).unwrap();
    drop(a);
    b.download(TensorMut::vector(&mut back_b)).unwrap();
    assert_eq!((back_a, back_b), (ones, numbers));
}
