//! What a node can do with an input: `encrypt`, `decrypt`, and the operator's own `command`.

pub mod command;
pub mod crypt;
mod sink;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use age::x25519::Identity;
use alloy::primitives::B256;
use market::ContentId;
use tokio_util::sync::CancellationToken;

pub use sink::Sink;

/// Operation: encrypts the input to the recipients in the parameters.
pub const ENCRYPT: &str = "encrypt";
/// Operation: decrypts an input that was encrypted to the node's key.
pub const DECRYPT: &str = "decrypt";
/// Operation: runs the operator's program.
pub const COMMAND: &str = "command";

/// Why a job could not be done.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The parameters make no sense for the operation. No node could do it.
    #[error("bad params: {0}")]
    BadParams(String),
    /// The input is not what the operation needs. No other attempt would help.
    #[error("bad input: {0}")]
    BadInput(String),
    /// The node does not do this operation.
    #[error("this node does not offer the operation {0:?}")]
    NotOffered(String),
    /// The output is longer than the operator allows.
    #[error("the output exceeds the node's limit of {0} bytes")]
    OutputTooLarge(u64),
    /// The command ran too long.
    #[error("the command did not finish within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The command failed.
    #[error("the command ended with {status}{}", tail(stderr))]
    CommandFailed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        stderr: String,
    },
    /// The node is stopping or has lost the job.
    #[error("interrupted")]
    Cancelled,
    /// The machine's fault.
    #[error("{0}")]
    Io(#[from] io::Error),
}

fn tail(stderr: &str) -> String {
    let text = stderr.trim();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl OpError {
    /// Whether another attempt, here or at another node, may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::BadParams(_) | Self::BadInput(_))
    }
}

/// What an operation made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Its content id.
    pub cid: ContentId,
    /// Its length in bytes.
    pub size: u64,
}

/// One piece of work.
pub struct Task<'a> {
    /// The job, for the command's environment.
    pub job_id: B256,
    /// Which operation.
    pub operation: &'a str,
    /// Its parameters: a JSON object, or empty.
    pub params: &'a str,
    /// The verified input.
    pub input: &'a Path,
    /// Where the output is to be written.
    pub output: &'a Path,
    /// An empty directory of the job's own.
    pub scratch: &'a Path,
    /// Stops the work.
    pub cancel: &'a CancellationToken,
}

/// The operations a node offers, with their limits.
#[derive(Clone)]
pub struct Operations {
    /// What is offered.
    pub names: Vec<String>,
    /// The node's decryption key.
    pub identity: Arc<Identity>,
    /// The operator's program.
    pub command: Option<command::CommandSpec>,
    /// Most bytes of an output.
    pub max_output: u64,
}

impl Operations {
    /// Does the work. The input is read and the output written as streams.
    pub async fn run(&self, task: Task<'_>) -> Result<Output, OpError> {
        if !self.names.iter().any(|name| name == task.operation) {
            return Err(OpError::NotOffered(task.operation.to_owned()));
        }
        match (task.operation, &self.command) {
            (ENCRYPT, _) => {
                let recipients = crypt::encrypt_params(task.params)?;
                self.blocking(&task, move |input, sink| crypt::encrypt(&recipients, input, sink)).await
            }
            (DECRYPT, _) => {
                let recipients = crypt::decrypt_params(task.params)?;
                let identity = Arc::clone(&self.identity);
                self.blocking(&task, move |input, sink| crypt::decrypt(&identity, &recipients, input, sink)).await
            }
            (COMMAND, Some(command)) => command.run(&task, self.max_output).await,
            _ => Err(OpError::NotOffered(task.operation.to_owned())),
        }
    }

    /// Runs `work` on a thread for blocking work, from the input's file to a sink over the output's.
    async fn blocking<F>(&self, task: &Task<'_>, work: F) -> Result<Output, OpError>
    where
        F: FnOnce(std::fs::File, Sink) -> Result<Sink, OpError> + Send + 'static,
    {
        let input = std::fs::File::open(task.input)?;
        let sink = Sink::create(task.output, self.max_output, task.cancel.clone())?;
        tokio::task::spawn_blocking(move || work(input, sink)?.finish())
            .await
            .map_err(|error| OpError::Io(io::Error::other(error)))?
    }
}
