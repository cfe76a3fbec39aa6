//! What kernels do against what they have to do, and the table in `kernels/counters.json` that holds
//! them to it: CI counts anew and compares.

use serde::{Deserialize, Serialize};

use crate::device::cuda::Launched;

/// The table, as it was when this program was built.
const RECORDED: &str = include_str!("../../../../kernels/counters.json");

/// A row at one shape: what it has to do, and what its kernels did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    pub kernel: String,
    pub shape: [usize; 2],
    pub dtype: String,
    /// Bytes of all inputs, read once, and of all outputs, written once.
    pub floor_bytes: u64,
    /// Bytes that the lanes of an instruction read or write, each once, summed over instructions.
    pub bytes: u64,
    /// Those that a launch reads or writes for the first time: what crosses DRAM.
    pub first_bytes: u64,
    /// Those that it reads again, or after it has written them: what L2 gives.
    pub read_again: u64,
    /// Of 32 bytes, that the lanes of an instruction touch.
    pub sectors: u64,
    /// That these bytes would fill.
    pub ideal_sectors: u64,
    pub shared_accesses: u64,
    pub shared_wavefronts: u64,
    /// Without bank conflicts.
    pub ideal_wavefronts: u64,
    /// Wavefronts of `ldmatrix` alone.
    pub matrix_wavefronts: u64,
    pub ideal_matrix_wavefronts: u64,
    /// Multiply-adds on tensor cores that the op needs.
    pub macs_needed: u64,
    pub macs: u64,
    /// Of a block's slowest warp times its warps, from barrier to barrier.
    pub paced_macs: u64,
    pub local_bytes: u64,
    /// Arrivals of warps.
    pub barriers: u64,
    pub instructions: u64,
    pub lane_instructions: u64,
    /// That were launched, in order.
    pub kernels: Vec<String>,
}

/// Done / needed. What is not needed at all has no bar.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bars {
    /// Bytes moved for the first time / floor.
    pub dram: f64,
    /// Bytes moved / floor.
    pub bytes: f64,
    /// Sectors / sectors of accesses without gaps: 1 is fully coalesced.
    pub sectors: f64,
    /// Wavefronts / wavefronts without bank conflicts.
    pub wavefronts: Option<f64>,
    /// Those of `ldmatrix`.
    pub ldmatrix: Option<f64>,
    /// Multiply-adds executed, and those of the slowest warp by each that waits for it / needed.
    pub mma: Option<f64>,
}

#[derive(Deserialize)]
struct Recorded {
    rows: Vec<Counted>,
}

/// The rows of the table.
pub fn recorded() -> Vec<Counted> {
    let table: Recorded = serde_json::from_str(RECORDED)
        .expect("kernels/counters.json as tools/record-counters writes it");
    table.rows
}

impl Counted {
    /// Adds up what the launches of one run did.
    pub fn of(launches: &[Launched]) -> Counted {
        let sum = |count: fn(&Launched) -> u64| launches.iter().map(count).sum();
        Counted {
            bytes: sum(|l| l.counters.global_bytes_read + l.counters.global_bytes_written),
            first_bytes: sum(|l| l.counters.first_bytes_read + l.counters.first_bytes_written),
            read_again: sum(|l| l.counters.global_bytes_read - l.counters.first_bytes_read),
            sectors: sum(|l| l.counters.global_sectors),
            ideal_sectors: sum(|l| l.counters.ideal_sectors),
            shared_accesses: sum(|l| l.counters.shared_accesses),
            shared_wavefronts: sum(|l| l.counters.shared_wavefronts),
            ideal_wavefronts: sum(|l| l.counters.ideal_wavefronts),
            matrix_wavefronts: sum(|l| l.counters.matrix_wavefronts),
            ideal_matrix_wavefronts: sum(|l| l.counters.ideal_matrix_wavefronts),
            macs: sum(|l| l.counters.mma_macs),
            paced_macs: sum(|l| l.counters.paced_macs),
            local_bytes: sum(|l| l.counters.local_bytes),
            barriers: sum(|l| l.counters.block_barriers + l.counters.warp_barriers),
            instructions: sum(|l| l.counters.warp_instructions),
            lane_instructions: sum(|l| l.counters.lane_instructions),
            kernels: launches.iter().map(|launched| launched.name().to_string()).collect(),
            ..Counted::default()
        }
    }

    pub fn bars(&self) -> Bars {
        let ratio = |done: u64, needed: u64| done as f64 / needed as f64;
        let bar = |done, needed| (done > 0 || needed > 0).then(|| ratio(done, needed));
        Bars {
            dram: ratio(self.first_bytes, self.floor_bytes),
            bytes: ratio(self.bytes, self.floor_bytes),
            sectors: ratio(self.sectors, self.ideal_sectors),
            wavefronts: bar(self.shared_wavefronts, self.ideal_wavefronts),
            ldmatrix: bar(self.matrix_wavefronts, self.ideal_matrix_wavefronts),
            mma: bar(self.paced_macs, self.macs_needed),
        }
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let Bars { dram, bytes, sectors, wavefronts, ldmatrix, mma } = self.bars();
        let again = self.read_again as f64 / self.floor_bytes as f64;
        let or_none = |bar: Option<f64>| bar.map_or("-".into(), |bar| format!("{bar:.3}"));
        let per_access = match self.shared_accesses {
            0 => "-".into(),
            accesses => format!("{:.2}", self.shared_wavefronts as f64 / accesses as f64),
        };
        format!(
            "dram {dram:.3}  again {again:.3}  bytes {bytes:.3}  sectors {sectors:.3}  wavefronts {} \
             ({per_access} an access)  ldmatrix {}  mma {}  {:>9} instructions",
            or_none(wavefronts),
            or_none(ldmatrix),
            or_none(mma),
            self.instructions
        )
    }
}
