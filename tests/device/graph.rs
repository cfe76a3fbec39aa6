//! Recording and replaying. The recorded work is a product that is added: `c += aᵀ b`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use half::bf16;
use silkie::device::cuda::Cuda;
use silkie::device::{Buffer, Device};
use silkie::ops::{Write, matmul};
use silkie::tensor::{DType, Tensor, TensorMut};
use silkie::{Error, Result};

use crate::support;

/// A sum of products that is exact: `c [2, 2] += aᵀ b`, four small whole numbers.
struct Sum {
    a: Buffer,
    b: Buffer,
    c: Buffer,
}

impl Sum {
    fn new(cuda: Cuda) -> Sum {
        let device = Device::Cuda(cuda);
        let matrix = |values: [f32; 6]| {
            let mut buffer = Buffer::on(device, DType::Bf16, 3, 2).unwrap();
            buffer.upload(Tensor::new(&values.map(bf16::from_f32), 3, 2)).unwrap();
            buffer
        };
        let a = matrix([1.0, 2.0, 0.0, 1.0, 3.0, 0.0]);
        let b = matrix([1.0, 0.0, 2.0, 1.0, 0.0, 1.0]);
        Sum { a, b, c: Buffer::on(device, DType::F32, 2, 2).unwrap() }
    }

    fn add(&mut self) -> Result<()> {
        let (a, b, c) = (self.a.view(), self.b.view(), self.c.view_mut());
        matmul::tn(a, b, c, 1.0, Write::Accumulate)
    }

    /// How often the product was added.
    #[track_caller]
    fn times(&self) -> f32 {
        let mut c = [f32::NAN; 4];
        self.c.download(TensorMut::new(&mut c, 2, 2)).unwrap();
        let times = c[0];
        assert_eq!(c, [1.0, 3.0, 4.0, 1.0].map(|x| x * times));
        times
    }
}

#[test]
fn a_graph_does_nothing_when_recorded_and_everything_when_launched() {
    let Some(cuda) = support::cuda() else { return };
    let mut sum = Sum::new(cuda);
    sum.add().unwrap();
    let graph = cuda.capture(|| (0..3).try_for_each(|_| sum.add())).unwrap();
    assert_eq!(sum.times(), 1.0);
    graph.launch().unwrap();
    assert_eq!(sum.times(), 4.0);
    graph.launch().unwrap();
    graph.launch().unwrap();
    sum.add().unwrap();
    assert_eq!(sum.times(), 11.0);
}

#[test]
fn what_fails_while_recording_leaves_no_half_open_capture() {
    let Some(cuda) = support::cuda() else { return };
    let mut sum = Sum::new(cuda);
    let error = cuda.capture(|| {
        sum.add()?;
        Err(Error::Run("changed my mind".into()))
    });
    assert_eq!(error.err().unwrap().to_string(), "changed my mind");
    // What the host waits for cannot be recorded; the whole capture is then lost.
    type Forbidden = fn(&mut Sum, Cuda) -> Result<()>;
    let forbidden: [Forbidden; 3] = [
        |_, cuda| cuda.synchronize(),
        |_, cuda| Buffer::on(Device::Cuda(cuda), DType::F32, 1, 1).map(drop),
        |sum, _| sum.c.download(TensorMut::new(&mut [0.0f32; 4], 2, 2)),
    ];
    for forbidden in forbidden {
        let error = cuda.capture(|| {
            sum.add()?;
            forbidden(&mut sum, cuda)
        });
        let error = error.err().unwrap().to_string();
        assert!(error.contains("CUDA_ERROR_STREAM_CAPTURE"), "{error}");
    }
    let panic = std::panic::catch_unwind(|| cuda.capture(|| panic!("half way")).map(drop));
    assert!(panic.is_err());
    let nested = cuda.capture(|| cuda.capture(|| Ok(())).map(drop));
    assert!(nested.err().unwrap().to_string().contains("a capture inside a capture"));
    // After each of them the stream computes again.
    assert_eq!(sum.times(), 0.0);
    sum.add().unwrap();
    assert_eq!(sum.times(), 1.0);
    let graph = cuda.capture(|| sum.add()).unwrap();
    graph.launch().unwrap();
    assert_eq!(sum.times(), 2.0);
}

/// Nothing that another thread does meanwhile ends up in the graph: it waits.
#[test]
fn other_threads_are_not_recorded() {
    let Some(cuda) = support::cuda() else { return };
    let (mut ours, mut theirs) = (Sum::new(cuda), Sum::new(cuda));
    let (started, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let graph = std::thread::scope(|scope| {
        cuda.capture(|| {
            ours.add()?;
            scope.spawn(|| {
                started.store(true, Ordering::SeqCst);
                theirs.add().unwrap();
                done.store(true, Ordering::SeqCst);
            });
            while !started.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(100));
            assert!(!done.load(Ordering::SeqCst), "work of another thread during a capture");
            Ok(())
        })
        .unwrap()
    });
    assert_eq!((ours.times(), theirs.times()), (0.0, 1.0));
    graph.launch().unwrap();
    assert_eq!((ours.times(), theirs.times()), (1.0, 1.0));
}
