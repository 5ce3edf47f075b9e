//! Where outputs go: a file that is hashed and limited as it is written.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use market::content::ContentHasher;
use tokio_util::sync::CancellationToken;

use super::{OpError, Output};

/// Writes a file, computes its content id, and stops at a limit or when cancelled.
pub struct Sink {
    file: BufWriter<File>,
    hasher: ContentHasher,
    size: u64,
    limit: u64,
    cancel: CancellationToken,
    refusal: Option<OpError>,
}

impl Sink {
    /// Starts the file at `path` anew.
    pub fn create(path: &Path, limit: u64, cancel: CancellationToken) -> io::Result<Self> {
        Ok(Self::over(File::create(path)?, limit, cancel))
    }

    /// Writes to an empty `file`.
    pub fn over(file: File, limit: u64, cancel: CancellationToken) -> Self {
        Self {
            file: BufWriter::with_capacity(1 << 16, file),
            hasher: ContentHasher::default(),
            size: 0,
            limit,
            cancel,
            refusal: None,
        }
    }

    /// Itself, if the work that wrote to it is `done`. The reason why it refused a write takes the place of whatever the
    /// libraries in between made of that.
    pub fn judge(mut self, done: Result<(), OpError>) -> Result<Self, OpError> {
        match self.refusal.take() {
            Some(refusal) => Err(refusal),
            None => done.map(|()| self),
        }
    }

    fn refuse(&mut self, refusal: OpError) -> io::Error {
        let error = io::Error::other(refusal.to_string());
        self.refusal = Some(refusal);
        error
    }

    /// Makes the file durable.
    pub fn finish(mut self) -> Result<Output, OpError> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        Ok(Output { cid: self.hasher.finish(), size: self.size })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(self.refuse(OpError::Cancelled));
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.size.saturating_add(length) > self.limit {
            return Err(self.refuse(OpError::OutputTooLarge(self.limit)));
        }
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += length;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
