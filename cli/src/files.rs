//! Files that survive a crash at any moment: whole or absent, and on the disk before anyone is told.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use market::deployment::Deployment;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

/// Makes the directory at `path`, for this user only.
pub fn private_dir(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .with_context(|| format!("cannot make {} private", path.display()))
}

/// The directory of what belongs to one escrow.
#[must_use]
pub fn name_of(deployment: &Deployment) -> String {
    format!("{}-{:?}", deployment.chain_id, deployment.escrow)
}

/// Writes `value` to `path` in place of what was there. The directory must exist.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

/// What [`write_json`] wrote; nothing if there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let value = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(Some(value))
}

/// Reads every `*.json` in `dir`; nothing if there is no such directory.
pub fn read_all<T: DeserializeOwned>(dir: &Path) -> anyhow::Result<Vec<T>> {
    let mut values = Vec::new();
    for path in list(dir, "json")? {
        // It may have been moved since.
        values.extend(read_json(&path)?);
    }
    Ok(values)
}

/// The files in `dir` with this extension, in the order of their names.
pub fn list(dir: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(|| format!("cannot read {}", dir.display()))?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}

/// A file with one JSON object on each line, which only grows.
pub struct Log(PathBuf);

impl Log {
    /// The log at `path`, which need not exist.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// All entries. A last line without its end was being written when the machine stopped: nobody has been told of it.
    pub fn read<T: DeserializeOwned>(&self) -> anyhow::Result<Vec<T>> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.0.display())),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |line| serde_json::from_str(line).with_context(|| format!("{} is damaged", self.0.display()));
        whole.lines().map(parse).collect()
    }

    /// Adds an entry; it is on the disk when this returns. The caller holds a lock.
    pub fn append(&self, entry: &impl Serialize) -> anyhow::Result<()> {
        let write = || -> io::Result<()> {
            let whole = match fs::read(&self.0) {
                Ok(bytes) => bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1),
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
            let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.0)?;
            // What a crash cut off would make a line of two halves.
            file.set_len(u64::try_from(whole).map_err(io::Error::other)?)?;
            let mut line = serde_json::to_vec(entry)?;
            line.push(b'\n');
            file.write_all(&line)?;
            file.sync_all()?;
            File::open(self.0.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        write().with_context(|| format!("cannot write to {}", self.0.display()))
    }
}

/// Holds the lock of `path` until it is dropped, waiting for another process that has it.
pub fn lock(path: &Path) -> anyhow::Result<File> {
    let cannot = || format!("cannot lock {}", path.display());
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.with_context(cannot)?;
    file.lock().with_context(cannot)?;
    Ok(file)
}

#[cfg(test)]
pub(crate) mod tests {
    use alloy::primitives::Address;

    use super::*;

    /// A manifest with nothing behind it.
    pub fn deployment() -> Deployment {
        serde_json::from_value(serde_json::json!({
            "chainId": 31337, "escrow": Address::with_last_byte(1), "registry": Address::with_last_byte(2),
            "deployBlock": 0,
            "escrowParams": {"thawPeriod": 60, "owner": Address::ZERO, "maxChallengeWindow": 3600, "arbiterPeriod": 60},
            "registryParams": {"minStake": "1", "unbondingPeriod": 7200, "bond": "1", "owner": Address::ZERO},
        }))
        .unwrap()
    }

    #[test]
    fn a_log_forgets_the_line_that_a_crash_cut_off_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let log = Log::at(path.clone());
        assert_eq!(log.read::<u32>().unwrap(), [0_u32; 0]);
        log.append(&1).unwrap();
        log.append(&22).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"33").unwrap();
        assert_eq!(log.read::<u32>().unwrap(), [1, 22]);
        log.append(&4).unwrap();
        assert_eq!(log.read::<u32>().unwrap(), [1, 22, 4]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "1\nnonsense\n2\n").unwrap();
        assert!(log.read::<u32>().is_err(), "damage in the middle is not passed over");
    }

    #[test]
    fn json_is_replaced_whole_and_what_is_missing_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
        write_json(&path, &1).unwrap();
        write_json(&path, &2).unwrap();
        fs::write(dir.path().join("notes.txt"), "x").unwrap();
        assert_eq!(read_all::<u32>(dir.path()).unwrap(), [2]);
        assert_eq!(read_all::<u32>(&dir.path().join("none")).unwrap(), [0_u32; 0]);
        fs::write(&path, "").unwrap();
        assert!(read_json::<u32>(&path).unwrap_err().to_string().contains("damaged"));
    }
}
