//! What the environment says, read once.

use std::env::{self, VarError};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use super::attributes::SHARED_PER_BLOCK_OPT_IN;
use crate::exec::Schedules;

/// The environment's variables, all optional.
pub struct Settings {
    /// `CUDA_EMULATOR_CHECKS=on|off`: whether every access of a kernel is checked.
    pub checked: bool,
    /// `CUDA_EMULATOR_SCHEDULE=order|random[:SEED]|last[:WARP]`: for every launch; without it they vary.
    pub schedules: Schedules,
    /// `CUDA_EMULATOR_THREADS`: threads that run blocks.
    pub threads: usize,
    /// `CUDA_EMULATOR_MEMORY`, in MiB: bytes of device memory.
    pub memory: usize,
    /// `CUDA_EMULATOR_SHARED`, in KiB: bytes of shared memory that a block may ask for.
    pub shared: u32,
    /// `CUDA_EMULATOR_LOG=1`: one line per call.
    pub log: bool,
    /// `CUDA_EMULATOR_QUIET=1`: no greeting.
    pub quiet: bool,
    /// `CUDA_EMULATOR_DRIVER_VERSION`: 13000 is 13.0.
    pub driver_version: i32,
    /// `CUDA_EMULATOR_MODULES`: a folder of files that take the place of loaded modules.
    pub modules: Option<PathBuf>,
    /// `CUDA_EMULATOR_STREAMS=deferred:SEED`: work waits until the host waits for it. `None`: it runs inside of the
    /// call that submits it.
    pub deferred: Option<u64>,
}

/// The settings, or a sentence about a variable that cannot be read.
pub fn settings() -> &'static Result<Settings, String> {
    static SETTINGS: OnceLock<Result<Settings, String>> = OnceLock::new();
    SETTINGS.get_or_init(read)
}

fn read() -> Result<Settings, String> {
    let cores = available_parallelism().map_or(1, usize::from);
    let megabytes: usize = number("MEMORY", 8192)?;
    let shared = number("SHARED", SHARED_PER_BLOCK_OPT_IN >> 10)?;
    let memory = megabytes.checked_mul(1 << 20).filter(|&bytes| bytes > 0);
    Ok(Settings {
        checked: choice("CHECKS", [("on", true), ("off", false)], true)?,
        schedules: schedules()?,
        threads: number("THREADS", cores)?.max(1),
        memory: memory.ok_or_else(|| wrong("MEMORY", &megabytes.to_string(), "MiB, 1 or more"))?,
        shared: match shared {
            48..=227 => shared << 10,
            _ => return Err(wrong("SHARED", &shared.to_string(), "KiB, 48 to 227")),
        },
        log: choice("LOG", [("1", true), ("0", false)], false)?,
        quiet: choice("QUIET", [("1", true), ("0", false)], false)?,
        driver_version: number("DRIVER_VERSION", 13000)?,
        modules: variable("MODULES")?.map(PathBuf::from),
        deferred: deferred()?,
    })
}

fn deferred() -> Result<Option<u64>, String> {
    let Some(value) = variable("STREAMS")? else { return Ok(None) };
    let expected = "synchronous, deferred or deferred:SEED";
    match value.split_once(':') {
        None if value == "synchronous" => Ok(None),
        None if value == "deferred" => Ok(Some(0)),
        Some(("deferred", seed)) => {
            seed.parse().map(Some).map_err(|_| wrong("STREAMS", &value, expected))
        }
        _ => Err(wrong("STREAMS", &value, expected)),
    }
}

fn choice(name: &str, choices: [(&str, bool); 2], default: bool) -> Result<bool, String> {
    let Some(value) = variable(name)? else { return Ok(default) };
    let chosen = choices.iter().find(|(text, _)| *text == value);
    let expected = choices.map(|(text, _)| text).join(" or ");
    chosen.map(|&(_, meaning)| meaning).ok_or_else(|| wrong(name, &value, &expected))
}

fn schedules() -> Result<Schedules, String> {
    let Some(value) = variable("SCHEDULE")? else { return Ok(Schedules::Vary) };
    let expected = "order, random, random:SEED, last or last:WARP";
    value.parse().map_err(|()| wrong("SCHEDULE", &value, expected))
}

fn number<T: FromStr>(name: &str, default: T) -> Result<T, String> {
    let Some(value) = variable(name)? else { return Ok(default) };
    value.parse().map_err(|_| wrong(name, &value, "a number"))
}

fn variable(name: &str) -> Result<Option<String>, String> {
    match env::var(format!("CUDA_EMULATOR_{name}")) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(value)) => Err(wrong(name, &value.to_string_lossy(), "text")),
    }
}

fn wrong(name: &str, value: &str, expected: &str) -> String {
    format!("CUDA_EMULATOR_{name} is '{value}', expected {expected}; unset it or correct it")
}
