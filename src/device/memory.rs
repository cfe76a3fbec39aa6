//! How much memory this process has used, and how much the machine has.

/// The most physical memory this process ever held, in bytes, mapped files included: `VmHWM` of
/// `/proc/self/status`. `None` where the system does not say.
pub fn peak_bytes() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// The machine's memory in bytes: `MemTotal` of `/proc/meminfo`. `None` where the system does not say.
pub fn total_bytes() -> Option<u64> {
    field("/proc/meminfo", "MemTotal:")
}

/// The field `name` of a file of lines as "name: 123 kB", in bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
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
        assert!(super::total_bytes().is_some_and(|total| total >= peak));
    }
}
