//! Graphs: captured work, replayed.

use std::sync::Arc;

use super::Driver;
use super::api::{CUgraph, CUgraphExec, CUgraphNode, CUstream, Out, api, put, refuse};
use super::error::{CUresult, Done};
use super::work::Work;

pub struct Graph {
    /// In the order of capture: each after those it waits for.
    pub nodes: Arc<Vec<Node>>,
}

pub struct Node {
    pub handle: CUgraphNode,
    pub work: Work,
    /// Indices of earlier nodes.
    pub waits_for: Vec<usize>,
}

// Of CUgraphInstantiate_flags. UPLOAD and USE_NODE_PRIORITY change nothing here.
const AUTO_FREE_ON_LAUNCH: u64 = 1;
const DEVICE_LAUNCH: u64 = 4;
const KNOWN: u64 = AUTO_FREE_ON_LAUNCH | 2 | DEVICE_LAUNCH | 8;
/// CUDA_GRAPH_INSTANTIATE_SUCCESS
const INSTANTIATED: u32 = 0;

/// CUDA_GRAPH_INSTANTIATE_PARAMS
#[repr(C)]
#[derive(Debug)]
pub struct InstantiateParams {
    flags: u64,
    upload_stream: CUstream,
    error_node: CUgraphNode,
    result: u32,
}

fn instantiate(executable: Out<CUgraphExec>, graph: CUgraph, flags: u64) -> Done {
    let mut state = Driver::current()?.state();
    let nodes = Arc::clone(&state.graphs.get(graph)?.nodes);
    let contradicts = flags & AUTO_FREE_ON_LAUNCH != 0 && flags & DEVICE_LAUNCH != 0;
    if executable.is_none() || flags & !KNOWN != 0 || contradicts {
        return Err(CUresult::INVALID_VALUE);
    }
    if flags & DEVICE_LAUNCH != 0 {
        return refuse(CUresult::NOT_SUPPORTED, "a graph that is launched from the device".into());
    }
    put(executable, state.executables.insert(Graph { nodes }))
}

api! {
    fn cuGraphInstantiateWithFlags(executable: Out<CUgraphExec>, graph: CUgraph, flags: u64) {
        instantiate(executable, graph, flags)
    }

    fn cuGraphInstantiateWithParams(
        executable: Out<CUgraphExec>,
        graph: CUgraph,
        params: Option<&mut InstantiateParams>,
    ) {
        let params = params.ok_or(CUresult::INVALID_VALUE)?;
        params.error_node = 0;
        params.result = INSTANTIATED;
        instantiate(executable, graph, params.flags)
    }

    fn cuGraphUpload(executable: CUgraphExec, stream: CUstream) {
        let state = Driver::current()?.state();
        state.executables.get(executable)?;
        state.streams.get(stream).map(|_| ())
    }

    fn cuGraphLaunch(executable: CUgraphExec, stream: CUstream) {
        let driver = Driver::current()?;
        let nodes = Arc::clone(&driver.state().executables.get(executable)?.nodes);
        driver.submit(stream, Work::Graph(nodes))
    }

    fn cuGraphExecDestroy(executable: CUgraphExec) {
        let driver = Driver::current()?;
        let ended = driver.state().executables.remove(executable)?;
        drop(ended);
        Ok(())
    }

    fn cuGraphDestroy(graph: CUgraph) {
        let driver = Driver::current()?;
        let ended = driver.state().graphs.remove(graph)?;
        drop(ended);
        Ok(())
    }

    fn cuGraphGetNodes(graph: CUgraph, nodes: *mut CUgraphNode, count: Option<&mut usize>) {
        let state = Driver::current()?.state();
        let graph = state.graphs.get(graph)?;
        let count = count.ok_or(CUresult::INVALID_VALUE)?;
        if nodes.is_null() {
            *count = graph.nodes.len();
            return Ok(());
        }
        // The manual: handles beyond the last node are set to null.
        for i in 0..*count {
            let handle = graph.nodes.get(i).map_or(0, |node| node.handle);
            // SAFETY: the manual's contract: `nodes` has room for `count` handles.
            unsafe { nodes.add(i).write(handle) };
        }
        *count = graph.nodes.len().min(*count);
        Ok(())
    }

    fn cuGraphNodeGetType(node: CUgraphNode, kind: Out<u32>) {
        let state = Driver::current()?.state();
        let mut nodes = state.graphs.iter().flat_map(|(_, graph)| graph.nodes.iter());
        let node = nodes.find(|other| other.handle == node).ok_or(CUresult::INVALID_HANDLE)?;
        put(kind, node.work.node_type())
    }
}
