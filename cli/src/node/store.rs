//! The node's work on disk: one directory a job, and in it, once the work is done, a journal entry that outlives the
//! process until the API has acknowledged the result.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use alloy::primitives::B256;
use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::api::{CompleteRequest, LeaseRef};
use crate::ops::command;

const LOCK: &str = "lock";
const JOURNAL: &str = "completion.json";

/// A result that is made and signed, but not known to have arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The job.
    pub job_id: B256,
    /// Unix seconds, from the order; the result is worth nothing afterwards.
    pub deadline: u64,
    /// Bytes of the output, which lies beside this entry.
    pub size: u64,
    /// What is to be sent.
    pub completion: CompleteRequest,
}

impl Entry {
    /// The lease under which the result was made.
    #[must_use]
    pub fn lease(&self) -> LeaseRef {
        LeaseRef { job_id: self.job_id, fence: self.completion.fence }
    }
}

/// The directory of one node's work. Held by one process at a time.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Locked while the process lives.
    _lock: File,
}

/// The directory of one job.
#[derive(Debug, Clone)]
pub struct JobDir(PathBuf);

impl JobDir {
    /// The verified input.
    #[must_use]
    pub fn input(&self) -> PathBuf {
        self.0.join("input")
    }

    /// The output.
    #[must_use]
    pub fn output(&self) -> PathBuf {
        self.0.join("output")
    }

    /// For the operator's program to work in.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.0.join("scratch")
    }
}

impl Store {
    /// Opens the directory, for this user only, and locks it.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        fs::set_permissions(root, Permissions::from_mode(0o700))
            .with_context(|| format!("cannot make {} private", root.display()))?;
        let lock = File::create(root.join(LOCK)).with_context(|| format!("cannot write to {}", root.display()))?;
        lock.try_lock().map_err(|error| {
            anyhow::anyhow!("another node works in {} ({error}): give another --work-dir", root.display())
        })?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    fn path(&self, job_id: B256) -> PathBuf {
        self.root.join(format!("{job_id:x}"))
    }

    /// A fresh directory for the job, without whatever an earlier attempt left.
    pub fn begin(&self, job_id: B256) -> io::Result<JobDir> {
        self.remove(job_id)?;
        let dir = JobDir(self.path(job_id));
        fs::create_dir_all(dir.scratch())?;
        Ok(dir)
    }

    /// Where the job's files are.
    #[must_use]
    pub fn dir(&self, job_id: B256) -> JobDir {
        JobDir(self.path(job_id))
    }

    /// Removes the job's files.
    pub fn remove(&self, job_id: B256) -> io::Result<()> {
        remove_dir(&self.path(job_id))
    }

    /// Makes the entry durable; the output must be durable already. The input is not needed any more.
    pub fn record(&self, entry: &Entry) -> io::Result<()> {
        let dir = self.path(entry.job_id);
        let draft = dir.join("completion.draft");
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec(entry)?)?;
        file.sync_all()?;
        fs::rename(&draft, dir.join(JOURNAL))?;
        File::open(&dir)?.sync_all()?;
        File::open(&self.root)?.sync_all()?;
        fs::remove_file(dir.join("input")).or_else(ignore_missing)?;
        remove_dir(&dir.join("scratch"))
    }

    /// The job's entry, if the work on it is done.
    #[must_use]
    pub fn entry(&self, job_id: B256) -> Option<Entry> {
        let entry = read_entry(&self.path(job_id))?;
        (entry.job_id == job_id).then_some(entry)
    }

    /// Cleans up after an earlier process at `now` (unix seconds): returns the results that may still count, and removes
    /// everything else. Unfinished work is done again when its lease is given to the node again.
    pub fn recover(&self, now: u64) -> anyhow::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for item in fs::read_dir(&self.root).with_context(|| format!("cannot read {}", self.root.display()))? {
            let path = item?.path();
            if !path.is_dir() {
                continue;
            }
            match read_entry(&path).filter(|entry| entry.deadline >= now && self.path(entry.job_id) == path) {
                Some(entry) => entries.push(entry),
                None => {
                    command::kill_orphan(&JobDir(path.clone()).output());
                    remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                }
            }
        }
        Ok(entries)
    }
}

/// An entry whose output is complete.
fn read_entry(dir: &Path) -> Option<Entry> {
    let entry: Entry = serde_json::from_slice(&fs::read(dir.join(JOURNAL)).ok()?).ok()?;
    let size = fs::metadata(dir.join("output")).ok()?.len();
    (size == entry.size).then_some(entry)
}

fn remove_dir(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path).or_else(ignore_missing)
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use market::ContentId;
    use market::job::Fence;

    use super::*;

    fn entry(byte: u8, deadline: u64) -> Entry {
        let output_cid = ContentId::of(b"result");
        let completion = CompleteRequest {
            fence: Fence(3),
            output_cid,
            price: 5_u128.into(),
            result_hash: output_cid.digest(),
            receipt_signature: vec![1; 65].into(),
        };
        Entry { job_id: B256::repeat_byte(byte), deadline, size: 6, completion }
    }

    fn finish(store: &Store, entry: &Entry) {
        let dir = store.begin(entry.job_id).unwrap();
        fs::write(dir.input(), b"input").unwrap();
        fs::write(dir.output(), b"result").unwrap();
        store.record(entry).unwrap();
        assert!(!dir.input().exists() && !dir.scratch().exists(), "only what is still needed stays");
    }

    #[test]
    fn results_survive_a_restart_and_everything_else_is_cleaned_up() {
        let root = tempfile::tempdir().unwrap();
        let (kept, stale, cut) = (entry(1, 100), entry(2, 99), entry(3, 100));
        {
            let store = Store::open(root.path()).unwrap();
            finish(&store, &kept);
            finish(&store, &stale);
            finish(&store, &cut);
            fs::write(store.dir(cut.job_id).output(), b"res").unwrap();
            fs::write(store.begin(B256::repeat_byte(4)).unwrap().input(), b"unfinished").unwrap();
        }
        let store = Store::open(root.path()).unwrap();
        assert_eq!(store.recover(100).unwrap(), std::slice::from_ref(&kept));
        assert_eq!(store.entry(kept.job_id), Some(kept.clone()));
        for gone in [2, 3, 4] {
            assert!(!store.path(B256::repeat_byte(gone)).exists(), "{gone}");
        }
        store.remove(kept.job_id).unwrap();
        store.remove(kept.job_id).unwrap();
        assert_eq!(store.entry(kept.job_id), None);
    }

    #[test]
    fn two_nodes_do_not_share_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let first = Store::open(root.path()).unwrap();
        assert!(Store::open(root.path()).unwrap_err().to_string().contains("another node"));
        drop(first);
        Store::open(root.path()).unwrap();
        assert_eq!(fs::metadata(root.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
