//! Where contents lie: a directory or an S3 bucket. A content is written under a temporary name, hashed on its way, and
//! renamed to its id only when whole; what has an id is therefore always what the id says, whenever a process dies.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use market::{
    ContentId,
    breaker::{Breaker, Broken},
    content::ContentHasher,
};
use object_store::{
    ClientConfigKey, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
};
use url::Url;

const BLOBS: &str = "blobs";
const UPLOADS: &str = "uploads";
/// How long a request to the bucket is repeated before whoever waits for it is told.
const RETRY_FOR: Duration = Duration::from_secs(10);
/// How long the store may take to begin something, and to put a content that has arrived in its place.
const BEGIN_WITHIN: Duration = Duration::from_secs(15);
const FINISH_WITHIN: Duration = Duration::from_secs(60);
/// How long it is left alone after it did not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Parts of one upload that may be on their way to the store at once.
const PARTS_IN_FLIGHT: usize = 4;

/// A store of contents.
#[derive(Debug, Clone)]
pub struct BlobStore {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Where it is a directory: its path, to see what the object store's listing hides.
    directory: Option<PathBuf>,
    breaker: Arc<Breaker>,
}

/// What a call to the store gives, which is not made while the last one has just failed.
pub type StoreResult<T> = Result<T, Broken<object_store::Error>>;

/// A content on its way in. Dropping it keeps nothing.
pub struct Upload {
    store: BlobStore,
    temporary: Path,
    writer: WriteMultipart,
    hasher: ContentHasher,
    size: u64,
}

/// A content on its way out, not verified yet.
pub struct Stored {
    /// How many bytes the store says it has.
    pub size: u64,
    /// The bytes.
    pub chunks: BoxStream<'static, object_store::Result<Bytes>>,
}

/// What became of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// It is stored.
    Stored {
        /// Its id.
        cid: ContentId,
        /// Its bytes.
        size: u64,
    },
    /// It is not what was expected, and nothing was kept.
    Mismatch {
        /// The id of what came.
        actual: ContentId,
    },
}

impl BlobStore {
    /// The store at `url`: `file:///directory`, which is made if missing, or `s3://bucket/prefix` with credentials from
    /// the environment.
    pub fn open(url: &Url) -> anyhow::Result<Self> {
        match url.scheme() {
            "file" => {
                let directory =
                    url.to_file_path().ok().with_context(|| format!("{url} is not a path on this machine"))?;
                std::fs::create_dir_all(directory.join(UPLOADS))
                    .with_context(|| format!("creating {}", directory.display()))?;
                let objects = LocalFileSystem::new_with_prefix(&directory)?.with_fsync(true);
                Ok(Self::new(Arc::new(objects), Path::default(), Some(directory)))
            }
            "s3" => {
                let mut builder = AmazonS3Builder::from_env().with_url(url.as_str());
                for (key, secs) in [(ClientConfigKey::ConnectTimeout, 3), (ClientConfigKey::Timeout, 20)] {
                    builder = builder.with_config(AmazonS3ConfigKey::Client(key), format!("{secs} seconds"));
                }
                let retry = RetryConfig { max_retries: 2, retry_timeout: RETRY_FOR, ..RetryConfig::default() };
                let objects = builder.with_retry(retry).build()?;
                Ok(Self::new(Arc::new(objects), Path::parse(url.path())?, None))
            }
            other => bail!("contents cannot be stored at {other}://; use file:// or s3://"),
        }
    }

    fn new(objects: Arc<dyn ObjectStore>, prefix: Path, directory: Option<PathBuf>) -> Self {
        Self { objects, prefix, directory, breaker: Arc::new(Breaker::new("store", PAUSE)) }
    }

    async fn call<T>(&self, within: Duration, call: impl Future<Output = object_store::Result<T>>) -> StoreResult<T> {
        self.breaker.call(within, call, |_| true).await
    }

    fn blob(&self, cid: ContentId) -> Path {
        self.prefix.clone().join(BLOBS).join(cid.to_string())
    }

    /// Begins to take a content.
    pub async fn upload(&self) -> StoreResult<Upload> {
        let name = hex::encode(rand::random::<[u8; 16]>());
        let temporary = self.prefix.clone().join(UPLOADS).join(name);
        let writer = WriteMultipart::new(self.call(BEGIN_WITHIN, self.objects.put_multipart(&temporary)).await?);
        Ok(Upload { store: self.clone(), temporary, writer, hasher: ContentHasher::default(), size: 0 })
    }

    /// The content with this id, if there is one.
    pub async fn read(&self, cid: ContentId) -> StoreResult<Option<Stored>> {
        self.call(BEGIN_WITHIN, async {
            match self.objects.get(&self.blob(cid)).await {
                Ok(found) => Ok(Some(Stored { size: found.meta.size, chunks: found.into_stream() })),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Whether the store answers.
    pub async fn check(&self) -> object_store::Result<()> {
        self.objects.list(Some(&self.prefix.clone().join(UPLOADS))).next().await.transpose().map(|_| ())
    }

    /// Removes uploads that were last written before `cutoff`: those of processes that died. Says how many. Parts of
    /// unfinished uploads to S3 are in no listing; a lifecycle rule of the bucket removes them.
    pub async fn sweep(&self, cutoff: DateTime<Utc>) -> anyhow::Result<u64> {
        if let Some(directory) = &self.directory {
            return sweep_directory(directory.join(UPLOADS), cutoff).await;
        }
        let old = self
            .objects
            .list(Some(&self.prefix.clone().join(UPLOADS)))
            .try_filter(move |object| std::future::ready(object.last_modified < cutoff))
            .map_ok(|object| object.location)
            .boxed();
        Ok(self.objects.delete_stream(old).try_fold(0, |count, _| std::future::ready(Ok(count + 1))).await?)
    }
}

async fn sweep_directory(uploads: PathBuf, cutoff: DateTime<Utc>) -> anyhow::Result<u64> {
    let mut swept = 0;
    let mut files = tokio::fs::read_dir(&uploads).await?;
    while let Some(file) = files.next_entry().await? {
        // Another instance may sweep, or finish the upload, at the same moment.
        let Ok(modified) = file.metadata().await.and_then(|meta| meta.modified()) else { continue };
        if DateTime::<Utc>::from(modified) < cutoff && tokio::fs::remove_file(file.path()).await.is_ok() {
            swept += 1;
        }
    }
    Ok(swept)
}

impl Upload {
    /// Bytes taken so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes; waits while the store is behind.
    pub async fn write(&mut self, bytes: Bytes) -> object_store::Result<()> {
        self.writer.wait_for_capacity(PARTS_IN_FLIGHT).await?;
        self.hasher.update(&bytes);
        self.size += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.writer.put(bytes);
        Ok(())
    }

    /// Keeps the content under its id, unless that is not `expected`.
    pub async fn finish(self, expected: Option<ContentId>) -> StoreResult<Finished> {
        let Self { store, temporary, writer, hasher, size } = self;
        let cid = hasher.finish();
        let finishing = async {
            if expected.is_some_and(|expected| expected != cid) {
                writer.abort().await?;
                return Ok(Finished::Mismatch { actual: cid });
            }
            writer.finish().await?;
            store.objects.rename(&temporary, &store.blob(cid)).await?;
            Ok(Finished::Stored { cid, size })
        };
        store.call(FINISH_WITHIN, finishing).await
    }

    /// Keeps nothing.
    pub async fn abort(self) -> object_store::Result<()> {
        self.writer.abort().await
    }
}

/// The chunks of a content, the last one held back until all of them together have proved to be `cid`. Ends with an error
/// otherwise.
pub fn verified(
    chunks: BoxStream<'static, object_store::Result<Bytes>>,
    cid: ContentId,
) -> BoxStream<'static, anyhow::Result<Bytes>> {
    struct State {
        chunks: BoxStream<'static, object_store::Result<Bytes>>,
        hasher: ContentHasher,
        held_back: Option<Bytes>,
    }
    let state = State { chunks, hasher: ContentHasher::default(), held_back: None };
    futures::stream::try_unfold(Some(state), move |state| async move {
        let Some(mut state) = state else { return Ok(None) };
        loop {
            let Some(chunk) = state.chunks.try_next().await? else {
                let actual = state.hasher.finish();
                if actual != cid {
                    bail!("the store has {actual} in place of {cid}");
                }
                return Ok(state.held_back.map(|last| (last, None)));
            };
            state.hasher.update(&chunk);
            if let Some(ready) = state.held_back.replace(chunk) {
                return Ok(Some((ready, Some(state))));
            }
        }
    })
    .boxed()
}

/// How long an upload may lie unfinished before it is swept. Longer than any upload takes.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(6 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, BlobStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(&Url::from_directory_path(dir.path()).unwrap()).unwrap();
        (dir, store)
    }

    async fn put(store: &BlobStore, bytes: &'static [u8], expected: Option<ContentId>) -> Finished {
        let mut upload = store.upload().await.unwrap();
        for chunk in bytes.chunks(7) {
            upload.write(Bytes::from_static(chunk)).await.unwrap();
        }
        upload.finish(expected).await.unwrap()
    }

    fn files(dir: &std::path::Path) -> usize {
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    }

    #[tokio::test]
    async fn what_is_stored_comes_back_verified() {
        let (_dir, store) = store();
        for bytes in [&b"four score and seven years ago"[..], b""] {
            let cid = ContentId::of(bytes);
            let size = bytes.len().try_into().unwrap();
            assert_eq!(put(&store, bytes, Some(cid)).await, Finished::Stored { cid, size });
            let found = store.read(cid).await.unwrap().unwrap();
            assert_eq!(found.size, size);
            let chunks: Vec<Bytes> = verified(found.chunks, cid).try_collect().await.unwrap();
            assert_eq!(chunks.concat(), bytes);
        }
    }

    #[tokio::test]
    async fn a_mismatch_keeps_nothing() {
        let (dir, store) = store();
        let actual = ContentId::of(b"this");
        assert_eq!(put(&store, b"this", Some(ContentId::of(b"that"))).await, Finished::Mismatch { actual });
        assert!(store.read(actual).await.unwrap().is_none());
        assert_eq!((files(&dir.path().join(UPLOADS)), files(&dir.path().join(BLOBS))), (0, 0));
    }

    #[tokio::test]
    async fn damaged_content_never_comes_out_whole() {
        let (dir, store) = store();
        let bytes: &'static [u8] = Box::leak(vec![7_u8; 100_000].into_boxed_slice());
        let cid = ContentId::of(bytes);
        put(&store, bytes, None).await;
        let mut damaged = bytes.to_vec();
        damaged[99_999] ^= 1;
        std::fs::write(dir.path().join(BLOBS).join(cid.to_string()), damaged).unwrap();
        let mut chunks = verified(store.read(cid).await.unwrap().unwrap().chunks, cid);
        let mut served = 0;
        let error = loop {
            match chunks.next().await.unwrap() {
                Ok(chunk) => served += chunk.len(),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("in place of"), "{error}");
        assert!(served > 0 && served < bytes.len(), "{served}");
    }

    #[tokio::test]
    async fn only_old_uploads_are_swept() {
        let (dir, store) = store();
        let mut upload = store.upload().await.unwrap();
        upload.write(Bytes::from_static(b"half a")).await.unwrap();
        let left = dir.path().join(UPLOADS).join("0123#1");
        std::fs::write(&left, b"of a process that died").unwrap();
        assert_eq!(store.sweep(market::clock::now() - chrono::TimeDelta::hours(1)).await.unwrap(), 0);
        std::fs::File::options().write(true).open(&left).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(store.sweep(market::clock::now() - chrono::TimeDelta::hours(1)).await.unwrap(), 1);
        assert!(!left.exists());
        assert!(matches!(upload.finish(None).await.unwrap(), Finished::Stored { size: 6, .. }));
    }
}
