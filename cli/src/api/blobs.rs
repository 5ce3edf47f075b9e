//! Contents to and from the API, as streams, verified against their ids.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use indicatif::ProgressBar;
use market::ContentId;
use market::content::ContentHasher;
use reqwest::{Body, Method};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};
use tokio_util::io::ReaderStream;

use super::{Api, ApiError, SILENCE, Stored};
use crate::error::Failure;

const CHUNK: usize = 1 << 16;
/// Slowest upload that is waited for, in bytes a second.
const SLOWEST: u64 = 20_000;

/// The content id and length of the file at `path`.
pub async fn identify(path: &Path, bar: &ProgressBar) -> anyhow::Result<(ContentId, u64)> {
    let mut file = File::open(path).await.with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = ContentHasher::default();
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        match file.read(&mut buffer).await.with_context(|| format!("cannot read {}", path.display()))? {
            0 => return Ok((hasher.finish(), size)),
            read => {
                hasher.update(&buffer[..read]);
                size += read as u64;
                bar.set_position(size);
            }
        }
    }
}

impl Api {
    /// Stores the file at `path`, whose content id is `cid` and whose length is `size`.
    pub async fn put_blob(&self, path: &Path, cid: ContentId, size: u64, bar: &ProgressBar) -> anyhow::Result<()> {
        let route = format!("lit-compute/blobs?cid={cid}");
        let within = SILENCE + Duration::from_secs(size / SLOWEST);
        // A retry with a new session opens the file again.
        let answer = self
            .with_session(|token| {
                let route = &route;
                async move {
                    bar.set_position(0);
                    let body = self.body_of(path, bar).await?;
                    let request = self
                        .request(Method::PUT, route)?
                        .bearer_auth(token)
                        .header("content-type", "application/octet-stream")
                        .header("content-length", size)
                        .timeout(within)
                        .body(body);
                    self.send(Method::PUT, route, request).await
                }
            })
            .await?;
        let stored: Stored = self.read(Method::PUT, &route, answer).await?;
        if stored.cid != cid {
            return Err(Failure::Unverified(format!("the API stored {cid} as {}", stored.cid)).into());
        }
        Ok(())
    }

    async fn body_of(&self, path: &Path, bar: &ProgressBar) -> Result<Body, ApiError> {
        let file = File::open(path).await.map_err(|error| ApiError::Malformed {
            method: Method::PUT,
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        let bar = bar.clone();
        let stream = ReaderStream::with_capacity(file, CHUNK).inspect(move |chunk| {
            if let Ok(bytes) = chunk {
                bar.inc(bytes.len() as u64);
            }
        });
        Ok(Body::wrap_stream(stream))
    }

    /// Writes the content `cid` to `file`, at most `limit` bytes, and fails unless it hashes to its id. Returns its
    /// length. What was written before a failure is of no use.
    pub async fn get_blob(&self, cid: ContentId, file: File, limit: u64, bar: &ProgressBar) -> anyhow::Result<u64> {
        let path = format!("ipfs/{cid}");
        let request = self.request(Method::GET, &path)?;
        let answer = tokio::time::timeout(SILENCE, self.send(Method::GET, &path, request))
            .await
            .map_err(|_| Failure::Timeout(format!("the API did not begin to send {cid}")))??;
        let announced = answer.content_length();
        if let Some(length) = announced {
            bar.set_length(length);
        }
        let too_long = || Failure::Unverified(format!("{cid} is longer than the limit of {limit} bytes"));
        anyhow::ensure!(announced.is_none_or(|length| length <= limit), too_long());

        let mut file = BufWriter::with_capacity(CHUNK, file);
        let (mut hasher, mut size) = (ContentHasher::default(), 0_u64);
        let mut chunks = answer.bytes_stream();
        loop {
            let chunk = tokio::time::timeout(SILENCE, chunks.next())
                .await
                .map_err(|_| Failure::Timeout(format!("the API stopped sending {cid}")))?;
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|source| self.unreachable(source))?;
            size = size.saturating_add(chunk.len() as u64);
            anyhow::ensure!(size <= limit, too_long());
            hasher.update(&chunk);
            file.write_all(&chunk).await.context("cannot write what was fetched")?;
            bar.set_position(size);
        }
        let actual = hasher.finish();
        if actual != cid {
            return Err(Failure::Unverified(format!("what the API sent for {cid} is {actual}")).into());
        }
        file.flush().await.context("cannot write what was fetched")?;
        file.get_ref().sync_all().await.context("cannot write what was fetched")?;
        Ok(size)
    }
}
