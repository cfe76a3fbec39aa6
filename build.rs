//! Compiles `kernels/**/*.cu` with nvcc, each to a fat binary, and embeds them in the program.
//!
//! nvcc (12.3 to 13.x) is looked for in `$SILKIE_NVCC`, `$CUDA_HOME/bin`, `PATH`,
//! `/usr/local/cuda/bin` and the project's own `.cuda/bin` (`tools/get-cuda`). Without it the table
//! of kernels is empty, which is said once. Whether there is a GPU is never asked.
//!
//! Every file becomes machine code and PTX for sm_80 and sm_90a (`*_sm90.cu`: sm_90a alone). What
//! ptxas says of registers, shared memory, stack and spills goes into the table and into
//! `kernels.tsv` beside it. Memory of a thread that is not in registers is a warning, with
//! `SILKIE_STRICT_KERNELS=1` an error, unless the file explains it: `// local memory: SYMBOL: why`.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

/// Oldest and first too new release of nvcc.
const RELEASES: [(u32, u32); 2] = [(12, 3), (14, 0)];

type Result<T> = std::result::Result<T, String>;

fn main() {
    if let Err(message) = build() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

fn build() -> Result<()> {
    for name in ["SILKIE_NVCC", "CUDA_HOME", "PATH", "SILKIE_STRICT_KERNELS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for path in ["kernels", "build.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("build.rs: no OUT_DIR; run it by cargo")?);
    let nvcc = find_nvcc()?;
    let mut modules = Vec::new();
    match &nvcc {
        Some(nvcc) => modules = compile_all(nvcc, &out)?,
        None => println!(
            "cargo::warning=no nvcc, so this build holds no CUDA kernels; tools/get-cuda fetches nvcc, \
             SILKIE_NVCC and CUDA_HOME name another"
        ),
    }
    for module in &modules {
        for kernel in module.undeclared_local_memory() {
            let message = format!(
                "kernels/{}.cu: {} for {} keeps {} bytes of stack and {} bytes of spills in local memory",
                module.name, kernel.symbol, kernel.arch, kernel.stack, kernel.spills
            );
            if env::var_os("SILKIE_STRICT_KERNELS").is_some_and(|value| value == "1") {
                let symbol = &kernel.symbol;
                return Err(format!("{message}; explain it: // local memory: {symbol}: why"));
            }
            println!("cargo::warning={message}");
        }
    }
    write(&out.join("kernels.tsv"), &resources(&modules))?;
    write(&out.join("kernels.rs"), &table(nvcc.as_ref(), &modules))
}

/// The compiler and what it says of its version.
struct Nvcc {
    path: PathBuf,
    release: (u32, u32),
}

/// The first nvcc whose release will do; others are passed over, which is said. Errors: the one that
/// `SILKIE_NVCC` names does not run, or is too old or too new.
fn find_nvcc() -> Result<Option<Nvcc>> {
    if let Some(path) = env::var_os("SILKIE_NVCC") {
        return nvcc(path.into()).map(Some).map_err(|e| format!("SILKIE_NVCC: {e}"));
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let paths = env::var_os("PATH").unwrap_or_default();
    let candidates = home
        .into_iter()
        .chain(env::split_paths(&paths).map(|folder| folder.join("nvcc")))
        .chain(["/usr/local/cuda/bin/nvcc".into(), root.join(".cuda/bin/nvcc")]);
    for path in candidates.filter(|path| path.is_file()) {
        match nvcc(path) {
            Ok(nvcc) => return Ok(Some(nvcc)),
            Err(message) => println!("cargo::warning=passed over: {message}"),
        }
    }
    Ok(None)
}

/// The nvcc at `path`, if it runs and its release will do.
fn nvcc(path: PathBuf) -> Result<Nvcc> {
    let at = path.display();
    let output = Command::new(&path).arg("--version").output();
    let output = output.map_err(|e| format!("{at} cannot be run: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let release = release(&text).ok_or_else(|| format!("{at} tells no release: {text:?}"))?;
    if release < RELEASES[0] || release >= RELEASES[1] {
        let (major, minor) = release;
        return Err(format!("{at} is nvcc {major}.{minor}, expected 12.3 to 13.x"));
    }
    println!("cargo::rerun-if-changed={at}");
    Ok(Nvcc { path, release })
}

/// `(13, 0)` of "Cuda compilation tools, release 13.0, V13.0.88".
fn release(text: &str) -> Option<(u32, u32)> {
    let rest = text.split("release ").nth(1)?;
    let (major, rest) = rest.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A compiled file.
struct Module {
    /// Path under kernels/, without `.cu`.
    name: String,
    fatbin: PathBuf,
    source: String,
    kernels: Vec<Kernel>,
}

/// What one entry point takes on one architecture.
#[derive(Debug, Default, PartialEq)]
struct Kernel {
    symbol: String,
    arch: String,
    registers: u32,
    /// Bytes of static shared memory of a block.
    shared: u32,
    /// Bytes of a thread.
    stack: u32,
    /// Bytes of a thread, stored or loaded, whichever is more.
    spills: u32,
}

impl Module {
    fn undeclared_local_memory(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter().filter(|kernel| {
            let declared = format!("// local memory: {}:", kernel.symbol);
            kernel.stack + kernel.spills > 0 && !self.source.contains(&declared)
        })
    }
}

/// All files, as many at a time as cargo allows; those that did not change are left alone.
fn compile_all(nvcc: &Nvcc, out: &Path) -> Result<Vec<Module>> {
    let mut files = Vec::new();
    sources(Path::new("kernels"), &mut files)?;
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..files.len().min(jobs) {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let module = compile(nvcc, file, out);
                    done.lock().unwrap_or_else(|e| e.into_inner()).insert(file, module);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(|e| e.into_inner()).into_values().collect()
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let error = |e: std::io::Error| format!("{}: cannot be read: {e}", folder.display());
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            files.push(path);
        }
    }
    Ok(())
}

fn compile(nvcc: &Nvcc, file: &Path, out: &Path) -> Result<Module> {
    let at = file.display();
    let name = file.strip_prefix("kernels").unwrap_or(file).with_extension("");
    let name = name.to_string_lossy().into_owned();
    let source = fs::read_to_string(file).map_err(|e| format!("{at}: cannot be read: {e}"))?;
    let stem = name.replace('/', "-");
    let [fatbin, depends, log, made_by] =
        ["fatbin", "d", "log", "args"].map(|extension| out.join(format!("{stem}.{extension}")));
    let capabilities: &[&str] = if stem.ends_with("_sm90") { &["90a"] } else { &["80", "90a"] };
    let mut args: Vec<OsString> =
        ["-fatbin", "-std=c++17", "-O3", "-lineinfo", "-Xptxas=-v", "-Ikernels"]
            .map(OsString::from)
            .into();
    for capability in capabilities {
        args.push(
            format!(
                "-gencode=arch=compute_{capability},code=[compute_{capability},sm_{capability}]"
            )
            .into(),
        );
    }
    args.extend([
        "-MD".into(),
        "-MF".into(),
        depends.clone().into(),
        "-o".into(),
        fatbin.clone().into(),
        file.into(),
    ]);
    let made_now = format!("{:?} {:?} {args:?}", nvcc.path, nvcc.release);
    let is_made = fs::read_to_string(&made_by).is_ok_and(|made| made == made_now);
    if !is_made || !is_newer(&fatbin, &depends) {
        // Removed first: what is there at the end was made by this run, and whole.
        let _ = fs::remove_file(&made_by);
        let output = Command::new(&nvcc.path).args(&args).output();
        let output = output.map_err(|e| format!("{}: cannot be run: {e}", nvcc.path.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!(
                "{at}: nvcc fails\n{}{said}",
                String::from_utf8_lossy(&output.stdout)
            ));
        }
        write(&log, &said)?;
        write(&made_by, &made_now)?;
    }
    let said = fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()))?;
    Ok(Module { name, fatbin, source, kernels: kernels(&said) })
}

/// Whether `target` is at least as new as all that the rule in `depends` names.
fn is_newer(target: &Path, depends: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let (Some(target), Ok(rule)) = (changed(target), fs::read_to_string(depends)) else {
        return false;
    };
    let is_older = |time: Option<SystemTime>| time.is_some_and(|time| time <= target);
    inputs(&rule).all(|input| is_older(changed(Path::new(input))))
}

/// The inputs of a make rule: what follows the colon, lines joined.
fn inputs(rule: &str) -> impl Iterator<Item = &str> {
    let inputs = rule.split_once(": ").map_or("", |(_, inputs)| inputs);
    inputs.split_whitespace().filter(|word| *word != "\\")
}

/// What `ptxas -v` says of each entry point: three lines of it, in this order.
fn kernels(log: &str) -> Vec<Kernel> {
    let quoted = |line: &str, i: usize| line.split('\'').nth(i).unwrap_or_default().to_string();
    // The number in front of `unit`.
    let number = |line: &str, unit: &str| -> u32 {
        let before = line.split(unit).next().filter(|before| before.len() < line.len());
        let word = before.and_then(|before| before.trim_end().rsplit([' ', ',']).next());
        word.and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    let mut kernels: Vec<Kernel> = Vec::new();
    for line in log.lines() {
        if line.contains("Compiling entry function") {
            let (symbol, arch) = (quoted(line, 1), quoted(line, 3));
            kernels.push(Kernel { symbol, arch, ..Kernel::default() });
        } else if let Some(kernel) = kernels.last_mut() {
            if line.contains("bytes stack frame") {
                kernel.stack = number(line, " bytes stack frame");
                kernel.spills =
                    number(line, " bytes spill stores").max(number(line, " bytes spill loads"));
            } else if line.contains("Used ") {
                kernel.registers = number(line, " registers");
                kernel.shared = number(line, " bytes smem");
            }
        }
    }
    kernels
}

/// The resources as a table to read, one line per kernel and architecture.
fn resources(modules: &[Module]) -> String {
    let mut text = "module\tkernel\tarch\tregisters\tshared\tstack\tspills\n".to_string();
    for module in modules {
        for Kernel { symbol, arch, registers, shared, stack, spills } in &module.kernels {
            let _ = writeln!(
                text,
                "{}\t{symbol}\t{arch}\t{registers}\t{shared}\t{stack}\t{spills}",
                module.name
            );
        }
    }
    text
}

/// The Rust that `device::kernels` includes.
fn table(nvcc: Option<&Nvcc>, modules: &[Module]) -> String {
    let toolkit = nvcc.map(|nvcc| {
        let root = nvcc.path.parent().and_then(Path::parent).unwrap_or(Path::new(""));
        let (major, minor) = nvcc.release;
        format!(
            "Toolkit {{ release: Version {{ major: {major}, minor: {minor} }}, root: {root:?} }}"
        )
    });
    let toolkit = toolkit.map_or("None".to_string(), |toolkit| format!("Some({toolkit})"));
    let mut text = format!("static TOOLKIT: Option<Toolkit> = {toolkit};\n");
    text += "static MODULES: &[Module] = &[\n";
    for module in modules {
        let (name, fatbin) = (&module.name, &module.fatbin);
        let _ = writeln!(
            text,
            "Module {{ name: {name:?}, fatbin: &Fatbin(*include_bytes!({fatbin:?})), kernels: &["
        );
        for Kernel { symbol, arch, registers, shared, stack, spills } in &module.kernels {
            let _ = writeln!(
                text,
                "Kernel {{ symbol: {symbol:?}, arch: {arch:?}, registers: {registers}, \
                 shared: {shared}, stack: {stack}, spills: {spills} }},"
            );
        }
        text += "] },\n";
    }
    text + "];\n"
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| format!("{}: cannot be written: {e}", path.display()))
}

// Run with the other tests: tests/main.rs includes this file.
#[cfg(test)]
mod tests {
    use super::*;

    /// As nvcc 13.0 prints it.
    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'rope_bf16' for 'sm_80'
ptxas info    : Function properties for rope_bf16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 46 registers, used 1 barriers, 32 bytes smem, 440 bytes cmem[0]
ptxas info    : Compiling entry function 'rope_bf16' for 'sm_90a'
ptxas info    : Function properties for rope_bf16
    104 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
";

    fn module(source: &str) -> Module {
        let (name, source) = ("rope".to_string(), source.to_string());
        Module { name, fatbin: "rope.fatbin".into(), source, kernels: kernels(LOG) }
    }

    #[test]
    fn resources_are_read_from_ptxas() {
        let kernel = |arch: &str, [registers, shared, stack, spills]: [u32; 4]| Kernel {
            symbol: "rope_bf16".into(),
            arch: arch.into(),
            registers,
            shared,
            stack,
            spills,
        };
        let expected = [kernel("sm_80", [46, 32, 0, 0]), kernel("sm_90a", [255, 0, 104, 12])];
        assert_eq!(kernels(LOG), expected);
        assert_eq!(kernels("nothing of the kind\n"), []);
        let table = resources(&[module("")]);
        assert_eq!(table.lines().nth(2), Some("rope\trope_bf16\tsm_90a\t255\t0\t104\t12"));
    }

    #[test]
    fn local_memory_wants_an_explanation() {
        let undeclared = |source: &str| module(source).undeclared_local_memory().count();
        assert_eq!(undeclared(""), 1);
        assert_eq!(undeclared("// local memory: rope_f32: another"), 1);
        assert_eq!(undeclared("// local memory: rope_bf16: an index known only at run time"), 0);
    }

    #[test]
    fn releases_and_make_rules_are_read() {
        assert_eq!(release("Cuda compilation tools, release 13.0, V13.0.88"), Some((13, 0)));
        assert_eq!(release("release 12.10\n"), Some((12, 10)));
        assert_eq!(release("clang version 19"), None);
        let rule = "a.fatbin : kernels/a.cu \\\n    kernels/common/pack.cuh\n";
        assert_eq!(inputs(rule).collect::<Vec<_>>(), ["kernels/a.cu", "kernels/common/pack.cuh"]);
        assert_eq!(inputs("").count(), 0);
    }
}
