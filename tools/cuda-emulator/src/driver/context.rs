//! The primary context: retained, made current, synchronised.

use std::cell::RefCell;
use std::mem::take;

use super::api::{CUcontext, CUdevice, Out, api, put, put_if_asked, refuse};
use super::deferred::Awaited;
use super::device::check_device;
use super::error::{CUresult, Done};
use super::table::new_handle;
use super::{Driver, State, stream};

/// The primary context while it is active.
pub struct Context {
    handle: CUcontext,
    retained: u32,
    flags: u32,
    /// By number of the limit.
    limits: [usize; 3],
}

/// CU_LIMIT_STACK_SIZE, CU_LIMIT_PRINTF_FIFO_SIZE, CU_LIMIT_MALLOC_HEAP_SIZE.
const DEFAULT_LIMITS: [usize; 3] = [1 << 10, 1 << 20, 8 << 20];

thread_local! {
    /// Contexts of this thread, the current one last. Zero: none.
    static STACK: RefCell<Vec<CUcontext>> = const { RefCell::new(Vec::new()) };
}

/// The thread's current context, or 0.
pub fn top() -> CUcontext {
    STACK.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

/// Whether the thread's current context lives.
pub(super) fn check_current(state: &State) -> Done {
    check(state, top())
}

fn check(state: &State, context: CUcontext) -> Done {
    match &state.context {
        _ if context == 0 => Err(CUresult::INVALID_CONTEXT),
        Some(active) if active.handle == context => Ok(()),
        _ => Err(CUresult::CONTEXT_IS_DESTROYED),
    }
}

fn active(state: &mut State) -> Result<&mut Context, CUresult> {
    state.context.as_mut().ok_or(CUresult::INVALID_CONTEXT)
}

/// Ends the context and everything in it, unless somebody retains it.
fn destroy_unless_retained(driver: &Driver) {
    let is_retained =
        |state: &State| state.context.as_ref().is_none_or(|context| context.retained > 0);
    if is_retained(&driver.state()) {
        return;
    }
    // What goes wrong ends with the context.
    let _ = driver.drain();
    let _execution = driver.execution();
    let mut state = driver.state();
    if is_retained(&state) {
        return;
    }
    let ended = take(&mut *state);
    state.streams = stream::built_in();
    drop(state);
    for module in ended.modules.into_values() {
        module.unload(&driver.memory);
    }
    let pinned = ended.pinned.into_values().filter_map(|pinned| pinned.device);
    for address in ended.allocations.into_keys().chain(pinned) {
        driver.memory.free(address);
    }
}

api! {
    fn cuDevicePrimaryCtxRetain(context: Out<CUcontext>, device: CUdevice) {
        let driver = Driver::get()?;
        check_device(device)?;
        let mut state = driver.state();
        let fresh = || Context {
            handle: new_handle(), retained: 0, flags: 0, limits: DEFAULT_LIMITS,
        };
        let active = state.context.get_or_insert_with(fresh);
        put(context, active.handle)?;
        active.retained += 1;
        Ok(())
    }

    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) {
        let driver = Driver::get()?;
        check_device(device)?;
        let mut state = driver.state();
        let context = active(&mut state)?;
        context.retained = context.retained.saturating_sub(1);
        drop(state);
        destroy_unless_retained(driver);
        Ok(())
    }

    fn cuDevicePrimaryCtxReset_v2(device: CUdevice) {
        let driver = Driver::get()?;
        check_device(device)?;
        if let Some(context) = &mut driver.state().context {
            context.retained = 0;
        }
        destroy_unless_retained(driver);
        Ok(())
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: CUdevice, flags: u32) {
        let driver = Driver::get()?;
        check_device(device)?;
        if let Some(context) = &mut driver.state().context {
            context.flags = flags;
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(device: CUdevice, flags: Out<u32>, is_active: Out<i32>) {
        let driver = Driver::get()?;
        check_device(device)?;
        let state = driver.state();
        put(flags, state.context.as_ref().map_or(0, |context| context.flags))?;
        put(is_active, i32::from(state.context.is_some()))
    }

    fn cuCtxSetCurrent(context: CUcontext) {
        let driver = Driver::get()?;
        if context != 0 {
            check(&driver.state(), context)?;
        }
        STACK.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }

    fn cuCtxGetCurrent(context: Out<CUcontext>) {
        Driver::get()?;
        put(context, top())
    }

    fn cuCtxPushCurrent_v2(context: CUcontext) {
        check(&Driver::get()?.state(), context)?;
        STACK.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    }

    fn cuCtxPopCurrent_v2(context: Out<CUcontext>) {
        Driver::get()?;
        let popped = STACK.with_borrow_mut(Vec::pop).ok_or(CUresult::INVALID_CONTEXT)?;
        put_if_asked(context, popped);
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<CUdevice>) {
        Driver::current()?;
        put(device, 0)
    }

    fn cuCtxGetApiVersion(context: CUcontext, version: Out<u32>) {
        let driver = Driver::get()?;
        check(&driver.state(), if context == 0 { top() } else { context })?;
        put(version, 3020)
    }

    fn cuCtxGetFlags(flags: Out<u32>) {
        put(flags, active(&mut Driver::current()?.state())?.flags)
    }

    fn cuCtxSetFlags(flags: u32) {
        active(&mut Driver::current()?.state())?.flags = flags;
        Ok(())
    }

    fn cuCtxGetLimit(value: Out<usize>, limit: u32) {
        let mut state = Driver::current()?.state();
        let limits = active(&mut state)?.limits;
        put(value, *limits.get(limit as usize).ok_or(CUresult::UNSUPPORTED_LIMIT)?)
    }

    fn cuCtxSetLimit(limit: u32, value: usize) {
        let mut state = Driver::current()?.state();
        let limits = &mut active(&mut state)?.limits;
        *limits.get_mut(limit as usize).ok_or(CUresult::UNSUPPORTED_LIMIT)? = value;
        Ok(())
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        Driver::current()?;
        put_if_asked(least, stream::LEAST_PRIORITY);
        put_if_asked(greatest, stream::GREATEST_PRIORITY);
        Ok(())
    }

    fn cuCtxSynchronize() {
        let driver = Driver::current()?;
        if driver.state().invalidate_captures(|_| true) {
            return refuse(
                CUresult::STREAM_CAPTURE_UNSUPPORTED,
                "cuCtxSynchronize while a stream of the context is captured".into(),
            );
        }
        driver.wait(Awaited::Everything)
    }
}
