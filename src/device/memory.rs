//! How much memory this process has used.

/// The most physical memory this process ever held, in bytes, mapped files included: `VmHWM` of
/// `/proc/self/status`. `None` where the system does not say.
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn touched_memory_is_counted() {
        let block = std::hint::black_box(vec![1u8; 32 << 20]);
        let peak = super::peak_bytes().unwrap_or(0);
        assert!(peak >= block.len() as u64, "{peak}");
    }
}
