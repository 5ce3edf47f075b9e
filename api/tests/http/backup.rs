//! A market that is copied while it runs, and put back elsewhere.

use std::path::Path;

use devnet::{TestDatabase, paths};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Api, Wish, order, spec, submission};

async fn run(script: &str, argument: &Path, database_url: &str, blobs: &Path) -> Result<String, String> {
    let output = Command::new(paths::root().join("scripts").join(script))
        .arg(argument)
        .env("DATABASE_URL", database_url)
        .env("BLOB_STORE", format!("file://{}", blobs.display()))
        .output()
        .await
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// What must be the same afterwards.
async fn told(api: &Api) -> [Value; 2] {
    let jobs = api.get("/lit-compute/jobs").await.ok().body;
    [jobs, api.written().await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_copied_is_put_back_into_an_empty_database_only() {
    let api = Api::start().await;
    let (requester, node) = (api.requester().await, api.node().await);
    let spec = spec(api.blob(b"input").await);
    let output = api.blob(b"output").await;
    api.post(&requester, "/lit-compute/jobs/submit", submission(&order(requester.address(), &spec), &spec)).await.ok();
    let job = api.open_job().await;
    let lease = api.post(&node, "/lit-compute/jobs/claim", json!({ "waitSecs": 5 })).await.ok();
    let done = node.completion(job, lease.int("fence"), output, 10);
    api.post(&node, &format!("/lit-compute/jobs/{job}/complete"), done).await.ok();

    let backups = tempfile::tempdir().unwrap();
    let dump = run("backup", backups.path(), api.database_url(), api.blobs.path()).await.unwrap();
    let before = told(&api).await;

    let (database, blobs) = (TestDatabase::create().await.unwrap(), tempfile::tempdir().unwrap());
    run("restore", Path::new(&dump), database.url(), blobs.path()).await.unwrap();
    let again = run("restore", Path::new(&dump), database.url(), blobs.path()).await.unwrap_err();
    assert!(again.contains("must be an empty one"), "{again}");
    for content in [b"input".as_slice(), b"output"] {
        let file = blobs.path().join("blobs").join(market::ContentId::of(content).to_string());
        assert_eq!(std::fs::read(file).unwrap(), content);
    }
    let restored = Api::with(Wish { database_url: Some(database.url().to_owned()), ..Wish::default() }).await;
    assert_eq!(told(&restored).await, before);

    // A content that is lost is told of.
    std::fs::remove_file(backups.path().join("blobs").join(output.to_string())).unwrap();
    let (database, blobs) = (TestDatabase::create().await.unwrap(), tempfile::tempdir().unwrap());
    let lost = run("restore", Path::new(&dump), database.url(), blobs.path()).await.unwrap_err();
    assert!(lost.contains("1 contents are missing"), "{lost}");
}
