//! What a stream does: now, or as the node of a graph.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

use super::Driver;
use super::api::in_host_function;
use super::blas::Foreign;
use super::copy::{Copy, Fill};
use super::error::Done;
use super::event::Recorded;
use super::graph::Node;
use super::launch::KernelLaunch;

pub enum Work {
    Kernel(KernelLaunch),
    Copy(Copy),
    Fill(Fill),
    Host(HostFunction),
    Foreign(Foreign),
    Record {
        event: u64,
    },
    /// For an event outside of the graph, or of another stream. It has happened when this runs.
    Wait {
        event: u64,
    },
    /// In a stream's order.
    Free {
        address: u64,
    },
    Nothing,
    Graph(Arc<Vec<Node>>),
}

/// A function of the program, and the address of what it is called with.
pub struct HostFunction {
    pub function: unsafe extern "C" fn(*mut c_void),
    pub data: usize,
}

impl Work {
    /// Runs it to its end. The caller holds the driver's `execution`.
    pub fn run(&self, driver: &Driver) -> Done {
        match self {
            Work::Kernel(launch) => launch.run(driver),
            Work::Copy(copy) => copy.run(driver),
            Work::Fill(fill) => fill.run(driver),
            Work::Foreign(foreign) => foreign.run(),
            Work::Graph(nodes) => nodes.iter().try_for_each(|node| node.work.run(driver)),
            Work::Wait { .. } | Work::Nothing => Ok(()),
            Work::Free { address } => {
                driver.memory.free(*address);
                Ok(())
            }
            Work::Host(HostFunction { function, data }) => {
                // SAFETY: the manual's contract of cuLaunchHostFunc: the function may be called
                // with its data until the work ran for the last time.
                in_host_function(|| unsafe { function(*data as *mut c_void) });
                Ok(())
            }
            Work::Record { event } => {
                driver.state().events.get_mut(*event)?.last = Recorded::At(Instant::now());
                Ok(())
            }
        }
    }

    /// Fails where arguments are wrong, so that it is the call that submits the work that says so.
    pub fn check(&self, driver: &Driver) -> Done {
        match self {
            Work::Copy(copy) => copy.check(driver),
            Work::Fill(fill) => fill.range(driver).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The number in CUgraphNodeType.
    pub fn node_type(&self) -> u32 {
        match self {
            Work::Kernel(_) | Work::Foreign(_) => 0,
            Work::Copy(_) => 1,
            Work::Fill(_) => 2,
            Work::Host(_) => 3,
            Work::Graph(_) => 4,
            Work::Nothing => 5,
            Work::Wait { .. } => 6,
            Work::Record { .. } => 7,
            Work::Free { .. } => 11,
        }
    }
}
