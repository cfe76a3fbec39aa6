//! nvcc, when there is one.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// From `$SILKIE_NVCC`, `$CUDA_HOME/bin`, `PATH`, /usr/local/cuda/bin or the repository's `.cuda`; `None` is
/// said on stderr, as a skip of `test`, and is a failure with SILKIE_REQUIRE_CUDA=1.
pub fn find(test: &str) -> Option<PathBuf> {
    let given = env::var_os("SILKIE_NVCC").map(PathBuf::from);
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let paths = env::var_os("PATH").unwrap_or_default();
    let found = given
        .into_iter()
        .chain(home)
        .chain(env::split_paths(&paths).map(|folder| folder.join("nvcc")))
        .chain(["/usr/local/cuda/bin/nvcc".into(), root().join(".cuda/bin/nvcc")])
        .find(|path| path.is_file());
    if found.is_none() {
        assert!(
            env::var_os("SILKIE_REQUIRE_CUDA").is_none_or(|value| value != "1"),
            "{test}: no nvcc, and SILKIE_REQUIRE_CUDA=1 demands it; tools/get-cuda fetches it"
        );
        eprintln!("{test}: skipped: no nvcc; tools/get-cuda fetches it");
    }
    found
}

/// Runs nvcc on `source` with `arguments` and gives the bytes of its output.
pub fn compile(nvcc: &Path, source: &Path, arguments: &[&str]) -> Vec<u8> {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let hash = arguments.join(" ").replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let output = folder.join(format!("{stem}{hash}.{}", std::process::id()));
    let status = Command::new(nvcc).args(arguments).arg("-o").arg(&output).arg(source).status();
    assert!(status.expect("nvcc runs").success(), "nvcc {arguments:?} {}", source.display());
    let bytes = std::fs::read(&output).expect("nvcc wrote its output");
    std::fs::remove_file(&output).expect("the output can be removed");
    bytes
}
