//! `silkie bench kernels`: every CUDA kernel against the time that its bytes or its products take at full rate;
//! without a GPU, against the bytes and products themselves.

mod bars;
mod rows;

use half::bf16;
use serde::Serialize;

use crate::cli::print_json;
use crate::device::cuda::Cuda;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use bars::{Bars, Counted};
use rows::{On, Row, Run};

/// Samples a median is taken of.
const SAMPLES: usize = 25;
/// Elements that are read between two samples: more than any L2 holds.
const FLUSH: usize = 64 << 20;

/// Time every CUDA kernel, or count what it does
///
/// A row is an op at a shape. On a GPU: its bytes and FLOP, the floor, which is the time of those bytes
/// at the GPU's full bandwidth (memory clock x bus width) or of its products at the full rate of the tensor
/// cores, whichever is longer, then the median time with a cold L2, the rate, and the share of the floor.
/// Each result is compared with the CPU's before it is timed.
///
/// Without a GPU there are no times, but counters: what the kernels did / what they had to do. dram:
/// bytes that a launch loads or stores for the first time / the floor; again: bytes that it loads
/// again, which L2 may give; bytes: all that it loads and stores. sectors: of 32 bytes, touched / filled;
/// 1 is fully coalesced. wavefronts: passes over the banks of shared memory / passes without conflicts;
/// ldmatrix: those of this instruction alone. mma: multiply-adds on tensor cores / those needed, where a
/// warp counts as many as the slowest of its block from barrier to barrier: one that waits has saved
/// nothing. They come from kernels/counters.json, which the tests compare with what the emulated driver
/// counts; under that driver (its README says how) they are counted here.
///
/// Keys of --json: device, gb_per_s and gmac_per_s (its bandwidth and its multiply-adds of bf16, null
/// without a GPU), and rows of kernel, shape, dtype, bytes, flop, macs (on tensor cores), floor_us, us,
/// gb_per_s, percent_of_floor (null where nothing is timed), counters and bars (null where nothing is
/// counted).
#[derive(clap::Args)]
pub struct Kernels {
    /// Only rows whose name contains this, as "rms_norm forward"
    #[arg(value_name = "TEXT", default_value = "")]
    filter: String,
    /// Where to compute: cuda or cuda:N [default: cuda, where there is a GPU]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Print one JSON object as the last line of stdout
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    device: String,
    gb_per_s: Option<f64>,
    gmac_per_s: Option<f64>,
    rows: Vec<Line>,
}

/// A row of the report.
#[derive(Default, Serialize)]
struct Line {
    kernel: String,
    shape: [usize; 2],
    dtype: String,
    bytes: usize,
    flop: Option<usize>,
    macs: Option<usize>,
    floor_us: Option<f64>,
    us: Option<f64>,
    gb_per_s: Option<f64>,
    percent_of_floor: Option<f64>,
    counters: Option<Counted>,
    bars: Option<Bars>,
}

impl Kernels {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let device = Device::parse(self.device.as_deref().unwrap_or("cuda"));
        let report = match device {
            Ok(Device::Cuda(cuda)) if cuda.counts() => self.count(cuda)?,
            Ok(Device::Cuda(cuda)) => self.time(cuda)?,
            Ok(Device::Cpu) => {
                return Err(Error::Usage(
                    "--device cpu: kernels run on cuda or cuda:N; cargo bench --bench ops times the CPU"
                        .into(),
                ));
            }
            Err(error) if self.device.is_some() => return Err(error),
            Err(error) => self.recall(&error),
        };
        if report.rows.is_empty() && !self.filter.is_empty() {
            let message = format!("{}: no row has this in its name", self.filter);
            return Err(Error::Usage(message));
        }
        print_json(self.json, &report);
        Ok(())
    }

    /// Every row at its real shapes on a GPU.
    fn time(&self, cuda: Cuda) -> Result<Report> {
        let (on, bandwidth, products) =
            (Device::Cuda(cuda), cuda.gpu().bandwidth, cuda.gpu().products);
        let device = format!("{cuda} {}", cuda.gpu().name);
        println!(
            "{device}: {:.0} GB/s by memory clock x bus width, {:.0} TFLOP/s of bf16 by clock x tensor \
             cores",
            bandwidth / 1e9,
            2.0 * products / 1e12
        );
        let mut flush = rows::flush(On { device: on, dtype: DType::F32 }, FLUSH)?;
        let (gb_per_s, gmac_per_s) = (Some(bandwidth / 1e9), Some(products / 1e9));
        let mut report = Report { device, gb_per_s, gmac_per_s, rows: Vec::new() };
        for case in self.cases(|row| row.shapes) {
            let mut gpu = case.compared(on)?;
            let mut samples = Vec::new();
            for _ in 0..SAMPLES {
                flush.run()?;
                samples.push(cuda.time(|| gpu.run())?);
            }
            samples.sort_by(f64::total_cmp);
            let (seconds, mut line) = (samples[SAMPLES / 2], case.line());
            let macs = line.macs.unwrap_or(0) as f64;
            let floor = (line.bytes as f64 / bandwidth).max(macs / products);
            let rate = line.bytes as f64 / seconds / 1e9;
            println!(
                "{:<44} {:>7.1} MB {:>7.1} MFLOP   floor {:>6.1} us   {:>9.1} us {rate:>8.1} GB/s {:>4.0} % \
                 of floor",
                case.name(),
                line.bytes as f64 / 1e6,
                line.flop.unwrap_or(0) as f64 / 1e6,
                floor * 1e6,
                seconds * 1e6,
                100.0 * floor / seconds
            );
            line.floor_us = Some(floor * 1e6);
            line.us = Some(seconds * 1e6);
            line.gb_per_s = Some(rate);
            line.percent_of_floor = Some(100.0 * floor / seconds);
            report.rows.push(line);
        }
        Ok(report)
    }

    /// Every row at its counted shapes on an emulated GPU.
    fn count(&self, cuda: Cuda) -> Result<Report> {
        let device = format!("{cuda} {}", cuda.gpu().name);
        println!("{device}: an emulated GPU says nothing of speed; counted is what kernels do");
        let mut report = Report { device, gb_per_s: None, gmac_per_s: None, rows: Vec::new() };
        for case in self.cases(|row| row.counted) {
            let mut gpu = case.compared(Device::Cuda(cuda))?;
            let launched = cuda.count(|| gpu.run())?;
            let line = case.line();
            let counted = Counted {
                kernel: line.kernel.clone(),
                shape: line.shape,
                dtype: line.dtype.clone(),
                floor_bytes: line.bytes as u64,
                macs_needed: (case.row.macs)(case.shape) as u64,
                ..Counted::of(&launched)
            };
            println!("{:<44} {}", case.name(), counted.line());
            report.rows.push(Line { bars: Some(counted.bars()), counters: Some(counted), ..line });
        }
        Ok(report)
    }

    /// Every row of the table that the tests hold kernels to.
    fn recall(&self, error: &Error) -> Report {
        println!(
            "{error}\nwithout a GPU: not times, but what the kernels do, from kernels/counters.json; to \
             count anew, see tools/record-counters"
        );
        let mut report =
            Report { device: "none".into(), gb_per_s: None, gmac_per_s: None, rows: Vec::new() };
        for counted in bars::recorded() {
            let (kernel, shape, dtype) =
                (counted.kernel.clone(), counted.shape, counted.dtype.clone());
            let name = name(&kernel, shape, &dtype);
            if name.contains(&self.filter) {
                println!("{name:<44} {}", counted.line());
                let bytes = counted.floor_bytes as usize;
                let (bars, counters) = (Some(counted.bars()), Some(counted));
                report.rows.push(Line {
                    kernel,
                    shape,
                    dtype,
                    bytes,
                    counters,
                    bars,
                    ..Line::default()
                });
            }
        }
        report
    }

    fn cases(&self, shapes: fn(&Row) -> &[[usize; 2]]) -> impl Iterator<Item = Case> {
        let all = rows::all().into_iter().flat_map(move |row| {
            let shapes = shapes(&row).to_vec();
            let row = std::rc::Rc::new(row);
            shapes.into_iter().flat_map(move |shape| {
                let row = row.clone();
                row.dtypes.iter().map(move |&dtype| Case { row: row.clone(), shape, dtype })
            })
        });
        all.filter(|case| case.name().contains(&self.filter))
    }
}

/// A row at one shape, in one type.
struct Case {
    row: std::rc::Rc<Row>,
    shape: [usize; 2],
    dtype: DType,
}

fn name(kernel: &str, [rows, cols]: [usize; 2], dtype: &str) -> String {
    format!("{kernel} {rows}x{cols} {dtype}")
}

impl Case {
    fn name(&self) -> String {
        name(self.row.name, self.shape, self.dtype_name())
    }

    fn dtype_name(&self) -> &'static str {
        if self.dtype == DType::Bf16 { "bf16" } else { "f32" }
    }

    fn line(&self) -> Line {
        Line {
            kernel: self.row.name.into(),
            shape: self.shape,
            dtype: self.dtype_name().into(),
            bytes: (self.row.bytes)(self.shape, self.dtype),
            flop: Some((self.row.flop)(self.shape)),
            macs: Some((self.row.macs)(self.shape)),
            ..Line::default()
        }
    }

    /// Inputs and outputs on `gpu`, after one run whose results were those of the CPU.
    fn compared(&self, gpu: Device) -> Result<Box<dyn Run>> {
        let new = |device| (self.row.new)(On { device, dtype: self.dtype }, self.shape);
        let (mut cpu, mut gpu) = (new(Device::Cpu)?, new(gpu)?);
        for side in [&mut cpu, &mut gpu] {
            side.run()?;
            side.settle()?;
        }
        let bound = (self.row.bound)(self.dtype);
        for (cpu, gpu) in cpu.outputs().into_iter().zip(gpu.outputs()) {
            let got = difference(gpu, cpu)?;
            if got.is_nan() || got > bound {
                return Err(Error::Run(format!(
                    "{}: the GPU's result is off the CPU's by {got:.1e} of its size, expected at \
                     most {bound:.1e}; run the program under compute-sanitizer",
                    self.name()
                )));
            }
        }
        Ok(gpu)
    }
}

/// `‖got − expected‖ / ‖expected‖`
fn difference(got: &Buffer, expected: &Buffer) -> Result<f64> {
    let (got, expected) = (on_host(got)?, on_host(expected)?);
    let (mut error, mut size) = (0.0, 0.0);
    for (got, expected) in values(got.view()).zip(values(expected.view())) {
        error += (got - expected).powi(2);
        size += expected.powi(2);
    }
    Ok(if error == 0.0 { 0.0 } else { (error / size).sqrt() })
}

fn on_host(buffer: &Buffer) -> Result<Buffer> {
    let mut host = Buffer::host(buffer.view().dtype(), buffer.rows(), buffer.cols());
    buffer.download(host.view_mut())?;
    Ok(host)
}

fn values<'a>(view: Tensor<'a>) -> Box<dyn Iterator<Item = f64> + 'a> {
    match view.dtype() {
        DType::Bf16 => Box::new(view.elements::<bf16>().iter().map(|x| x.to_f64())),
        DType::F64 => Box::new(view.elements::<f64>().iter().copied()),
        DType::U32 => Box::new(view.elements::<u32>().iter().map(|&x| x.into())),
        _ => Box::new(view.elements::<f32>().iter().map(|&x| x.into())),
    }
}
