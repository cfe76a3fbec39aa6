//! `CUDA_EMULATOR_MODULES`: files that take the place of the modules a program loads, so that changed kernels can be
//! run without a build of the program.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fatbin;
use crate::ptx::parse;

/// The file of `folder` that stands in for a module, and its PTX: the first by name whose entry points contain
/// all of the module's. `None` when there is no such file, or the module has no entry point. Errors name the
/// file that cannot be read.
pub fn find(
    folder: &Path,
    ptx: &str,
    capability: u32,
) -> Result<Option<(PathBuf, String)>, String> {
    // What the module does wrong is told when it is loaded.
    let wanted = entry_points(ptx).unwrap_or_default();
    if wanted.is_empty() {
        return Ok(None);
    }
    for path in images(folder)? {
        let unread = |e: String| format!("{}: {e}", path.display());
        let bytes = fs::read(&path).map_err(|e| unread(e.to_string()))?;
        let text = fatbin::from_bytes(&bytes, capability).map_err(|e| unread(e.to_string()))?;
        let found = entry_points(&text).map_err(unread)?;
        if wanted.iter().all(|name| found.contains(name)) {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

fn entry_points(ptx: &str) -> Result<Vec<String>, String> {
    let module = parse(ptx).map_err(|e| e.to_string())?;
    let entries = module.functions.into_iter().filter(|function| function.is_entry);
    Ok(entries.map(|function| function.name).collect())
}

/// The files of a folder that can hold a module, by name.
fn images(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths =
        list().map_err(|e| format!("CUDA_EMULATOR_MODULES: {}: {e}", folder.display()))?;
    let is_image = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default();
        ["fatbin", "cubin", "ptx"].iter().any(|known| extension == *known)
    };
    paths.retain(is_image);
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ptx(entries: &[&str]) -> String {
        let head = ".version 8.0\n.target sm_80\n.address_size 64\n";
        let entry = |name: &&str| format!(".visible .entry {name}() {{ ret; }}\n");
        head.to_string() + &entries.iter().map(entry).collect::<String>()
    }

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("{name}.{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in files {
            fs::write(folder.join(file), text).unwrap();
        }
        folder
    }

    #[test]
    fn a_file_with_all_entry_points_is_found() {
        let (both, other) = (ptx(&["one", "two"]), ptx(&["three"]));
        let files = [("a.ptx", &*other), ("b.ptx", &both), ("c.ptx", &both), ("notes.txt", "no")];
        let folder = folder("replacement", &files);
        let find = |entries: &[&str]| find(&folder, &ptx(entries), 80).unwrap();
        let name = |found: Option<(PathBuf, String)>| {
            found.map(|(path, text)| (path.file_name().unwrap().to_owned(), text))
        };
        assert_eq!(name(find(&["two"])), Some(("b.ptx".into(), both.clone())));
        assert_eq!(name(find(&["three"])), Some(("a.ptx".into(), other.clone())));
        assert_eq!(find(&["one", "three"]), None);
        assert_eq!(find(&[]), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let folder = folder("unreadable", &[("damaged.fatbin", "?")]);
        let error = find(&folder, &ptx(&["one"]), 80).unwrap_err();
        assert!(error.contains("damaged.fatbin: module image: expected a fat binary"), "{error}");
        fs::write(folder.join("damaged.fatbin"), ".version 8.0\n.target").unwrap();
        let error = find(&folder, &ptx(&["one"]), 80).unwrap_err();
        assert!(error.contains("damaged.fatbin: PTX line 2"), "{error}");
        fs::write(folder.join("damaged.fatbin"), "\x7fELF").unwrap();
        let error = find(&folder, &ptx(&["one"]), 80).unwrap_err();
        assert!(error.contains("damaged.fatbin: module image: a cubin"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
        let error = find(&folder, &ptx(&["one"]), 80).unwrap_err();
        assert!(error.starts_with("CUDA_EMULATOR_MODULES: "), "{error}");
    }
}
