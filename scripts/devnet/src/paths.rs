//! Where things lie: the project's root, its build output, the tools it runs, and scratch directories.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, bail};
use rustix::process::{Pid, test_kill_process};
use tempfile::TempDir;

/// The project's root: `LITTORAL_ROOT` where set, otherwise the checkout this crate was built from.
pub fn root() -> PathBuf {
    match std::env::var_os("LITTORAL_ROOT") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).to_owned(),
    }
}

/// `.littoral` under the root: everything the private servers leave on disk. Not part of the repository.
pub fn state_dir() -> PathBuf {
    root().join(".littoral")
}

/// Forge's build output, one directory a source file.
pub fn artifacts_dir() -> PathBuf {
    root().join("contracts").join("out")
}

/// A program of the Foundry toolchain (`anvil`, `forge`, `cast`) as npm installed it.
///
/// The native binary is used rather than npm's wrapper in `node_modules/.bin`: a signal sent to the wrapper would not
/// reach the server behind it.
///
/// # Errors
/// When `npm ci` has not run, or the platform has no build.
pub fn foundry(tool: &str) -> anyhow::Result<PathBuf> {
    let os = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let path = root().join(format!("node_modules/@foundry-rs/{tool}-{os}-{arch}/bin/{tool}"));
    if !path.is_file() {
        bail!("{} is missing: run `npm ci --ignore-scripts` in {}", path.display(), root().display());
    }
    Ok(path)
}

/// A program on `PATH`, or in one of Debian's versioned PostgreSQL directories (the newest version first).
///
/// # Errors
/// When there is none; `package` is the Debian package the message names.
pub fn program(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    let mut versioned: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versioned.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let path = std::env::var_os("PATH").unwrap_or_default();
    versioned
        .into_iter()
        .map(|(_, dir)| dir)
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
        .with_context(|| format!("{name} is not installed (Debian package: {package})"))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A directory of its own under `.littoral/tmp`, removed on drop.
///
/// The name carries the process id, so that directories of processes that were killed are recognised and removed by the
/// next one. Others may enter it (mode 0755): a server running as another user keeps its data inside.
///
/// # Errors
/// When it cannot be created.
pub fn scratch_dir(prefix: &str) -> anyhow::Result<TempDir> {
    static SWEEP: Once = Once::new();
    let parent = state_dir().join("tmp");
    fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
    SWEEP.call_once(|| sweep(&parent));
    tempfile::Builder::new()
        .prefix(&format!("{prefix}-{}-", std::process::id()))
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(&parent)
        .with_context(|| format!("creating a directory in {}", parent.display()))
}

/// Removes the scratch directories whose process is gone. Best effort: another process may be sweeping too.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if owner(&entry.file_name()).is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH)) {
            remove_tree(&entry.path());
        }
    }
}

fn owner(name: &OsStr) -> Option<Pid> {
    let mut parts = name.to_str()?.rsplit('-');
    parts.next()?;
    Pid::from_raw(parts.next()?.parse().ok()?)
}

/// Removes a directory and what a symlinked `data` inside it points to (see [`crate::Postgres`]). Best effort.
pub fn remove_tree(dir: &Path) {
    if let Ok(elsewhere) = fs::read_link(dir.join("data"))
        && let Some(home) = elsewhere.parent()
        && home.starts_with("/var/tmp")
    {
        fs::remove_dir_all(home).ok();
    }
    fs::remove_dir_all(dir).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.toml").is_file());
        assert!(root().join("scripts/devnet/Cargo.toml").is_file());
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = program("no-such-program-anywhere", "some-package").unwrap_err().to_string();
        assert!(error.contains("some-package"), "{error}");
    }

    #[test]
    fn sweeping_removes_what_dead_processes_left_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let dead = parent.path().join(format!("pg-{}-abc", gone.id()));
        let alive = parent.path().join(format!("pg-{}-abc", std::process::id()));
        let other = parent.path().join("something");
        for dir in [&dead, &alive, &other] {
            fs::create_dir(dir).unwrap();
        }
        sweep(parent.path());
        assert!(!dead.exists());
        assert!(alive.exists() && other.exists());
    }
}
