//! `silkie bench kernels`: every CUDA kernel against the time that its bytes take at full bandwidth.

mod cases;

use serde::Serialize;

use crate::cli::print_json;
use crate::device::Device;
use crate::device::cuda::Cuda;
use crate::error::{Error, Result};
use crate::tensor::DType;
use cases::{Flats, Gradient, Kernel, Norms, Run, difference};

/// Tokens and width of preset `small`, and of packs of Qwen-VL-Chat.
const NORMS: [[usize; 2]; 3] = [[736, 512], [2048, 4096], [8192, 4096]];
/// Trained parameters: a power of two, and those of rank 64 on Qwen-VL-Chat.
const FLATS: [usize; 2] = [1 << 24, 112_197_632];
/// Samples a median is taken of.
const SAMPLES: usize = 25;
/// Elements that are read between two samples: more than any L2 holds.
const FLUSH: usize = 64 << 20;
/// Elements that an emulated device computes at most.
const EMULATED: usize = 1 << 16;

/// Time every CUDA kernel
///
/// A row is an op at a shape: its bytes and FLOP, the floor, which is the time of those bytes at the
/// GPU's full bandwidth (memory clock x bus width), then the median time with a cold L2, the rate, and
/// the share of the floor. Each result is compared with the CPU's before it is timed. An emulated
/// device says nothing of speed: there fewer elements are computed, compared, and not timed.
///
/// Keys of --json: device, gb_per_s (its bandwidth), and rows of kernel, shape, dtype, bytes, flop,
/// floor_us, us, gb_per_s, percent_of_floor (the last three null where nothing is timed).
#[derive(clap::Args)]
pub struct Kernels {
    /// Only rows whose name contains this, as "rms_norm forward"
    #[arg(value_name = "TEXT", default_value = "")]
    filter: String,
    /// Where to compute: cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cuda")]
    device: String,
    /// Print one JSON object as the last line of stdout
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    device: String,
    gb_per_s: f64,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    kernel: &'static str,
    shape: [usize; 2],
    dtype: &'static str,
    bytes: usize,
    flop: usize,
    floor_us: f64,
    us: Option<f64>,
    gb_per_s: Option<f64>,
    percent_of_floor: Option<f64>,
}

impl Kernels {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let Device::Cuda(cuda) = Device::parse(&self.device)? else {
            let message = format!(
                "--device {}: kernels run on cuda or cuda:N; cargo bench --bench ops times the CPU",
                self.device
            );
            return Err(Error::Usage(message));
        };
        let gpu = cuda.gpu();
        let mut report = Report {
            device: format!("{cuda} {}", gpu.name),
            gb_per_s: gpu.bandwidth / 1e9,
            rows: Vec::new(),
        };
        println!("{}: {:.0} GB/s by memory clock x bus width", report.device, report.gb_per_s);
        let mut bench = Bench { cuda, filter: self.filter, flush: None };
        if gpu.name.contains("Emulated") {
            println!(
                "an emulated device says nothing of speed: results are compared, on at most \
                 {EMULATED} elements, and not timed"
            );
        } else {
            bench.flush = Some(Gradient::new(Device::Cuda(cuda), FLUSH)?);
        }
        for case in cases() {
            if case.name().contains(&bench.filter) {
                report.add(case, bench.measure(case)?);
            }
        }
        if report.rows.is_empty() {
            let message = format!("{}: no row has this in its name", bench.filter);
            return Err(Error::Usage(message));
        }
        print_json(self.json, &report);
        Ok(())
    }
}

/// A row to be.
#[derive(Clone, Copy)]
struct Case {
    kernel: Kernel,
    shape: [usize; 2],
    dtype: DType,
}

fn cases() -> impl Iterator<Item = Case> {
    let norms = NORMS.into_iter().flat_map(|shape| {
        let dtypes = [DType::F32, DType::Bf16].into_iter();
        dtypes.flat_map(move |dtype| Kernel::NORMS.map(|kernel| Case { kernel, shape, dtype }))
    });
    let flats = FLATS.into_iter().flat_map(|n| {
        Kernel::FLATS.map(|kernel| Case { kernel, shape: [1, n], dtype: DType::F32 })
    });
    norms.chain(flats)
}

impl Case {
    fn name(&self) -> String {
        let (kernel, [rows, cols]) = (self.kernel.name(), self.shape);
        format!("{kernel} {rows}x{cols} {}", self.dtype_name())
    }

    fn dtype_name(&self) -> &'static str {
        if self.dtype == DType::Bf16 { "bf16" } else { "f32" }
    }
}

struct Bench {
    cuda: Cuda,
    filter: String,
    /// Evicts L2; none where nothing is timed.
    flush: Option<Gradient>,
}

impl Bench {
    /// Seconds, after the result was found right; none where nothing is timed.
    fn measure(&mut self, case: Case) -> Result<Option<f64>> {
        let [rows, cols] = case.shape;
        let [rows, cols] = match self.flush {
            Some(_) => [rows, cols],
            None => [rows.min(EMULATED.div_ceil(cols)), cols.min(EMULATED)],
        };
        let device = Device::Cuda(self.cuda);
        match case.kernel.is_norm() {
            true => {
                let new = |device| Norms::new(device, case.dtype, [rows, cols]);
                self.compare_and_time(case, new(Device::Cpu)?, new(device)?)
            }
            false => {
                let new = |device| Flats::new(device, cols);
                self.compare_and_time(case, new(Device::Cpu)?, new(device)?)
            }
        }
    }

    fn compare_and_time<T: Run>(
        &mut self,
        case: Case,
        mut cpu: T,
        mut gpu: T,
    ) -> Result<Option<f64>> {
        cpu.run(case.kernel)?;
        gpu.run(case.kernel)?;
        let bound = case.kernel.bound(case.dtype);
        for (cpu, gpu) in cpu.outputs().into_iter().zip(gpu.outputs()) {
            let got = difference(gpu, cpu)?;
            if got.is_nan() || got > bound {
                return Err(Error::Run(format!(
                    "{}: the GPU's result is off the CPU's by {got:.1e} of its size, expected at \
                     most {bound:.1e}; run the program under compute-sanitizer",
                    case.name()
                )));
            }
        }
        let Some(flush) = &mut self.flush else { return Ok(None) };
        let mut samples = Vec::new();
        for _ in 0..SAMPLES {
            flush.judge()?;
            samples.push(self.cuda.time(|| gpu.run(case.kernel))?);
        }
        samples.sort_by(f64::total_cmp);
        Ok(Some(samples[SAMPLES / 2]))
    }
}

impl Report {
    /// Prints the row and keeps it.
    fn add(&mut self, case: Case, seconds: Option<f64>) {
        let elements = case.shape[0] * case.shape[1];
        let bytes = case.kernel.bytes(case.dtype) * elements;
        let floor = bytes as f64 / self.gb_per_s / 1e9;
        let row = Row {
            kernel: case.kernel.name(),
            shape: case.shape,
            dtype: case.dtype_name(),
            bytes,
            flop: case.kernel.flop() * elements,
            floor_us: floor * 1e6,
            us: seconds.map(|seconds| seconds * 1e6),
            gb_per_s: seconds.map(|seconds| bytes as f64 / seconds / 1e9),
            percent_of_floor: seconds.map(|seconds| 100.0 * floor / seconds),
        };
        let measured = match (row.us, row.gb_per_s, row.percent_of_floor) {
            (Some(us), Some(rate), Some(share)) => {
                format!("{us:>9.1} us {rate:>8.1} GB/s {share:>4.0} % of floor")
            }
            _ => "compared".into(),
        };
        println!(
            "{:<44} {:>7.1} MB {:>7.1} MFLOP   floor {:>6.1} us   {measured}",
            case.name(),
            bytes as f64 / 1e6,
            row.flop as f64 / 1e6,
            row.floor_us
        );
        self.rows.push(row);
    }
}
