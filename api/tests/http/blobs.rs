use std::{path::Path, time::Duration};

use futures::StreamExt;
use market::ContentId;
use reqwest::Method;

use crate::support::{Api, Reply};

fn file_count(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// The bytes in pieces, without a Content-Length.
fn chunked(bytes: Vec<u8>) -> reqwest::Body {
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> = bytes.chunks(64 * 1024).map(|c| Ok(c.to_vec())).collect();
    reqwest::Body::wrap_stream(futures::stream::iter(pieces))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_of_any_size_come_back_as_they_went_in() {
    let api = Api::start().await;
    let user = api.user().await;
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    for bytes in [Vec::new(), b"<script>alert(1)</script>".to_vec(), large] {
        let stored = api.put_blob(&user, chunked(bytes.clone())).await.ok();
        assert_eq!(stored.status, 201);
        let cid = stored.text("cid");
        assert_eq!(cid, ContentId::of(&bytes).to_string());
        assert_eq!(stored.body["size"], bytes.len());
        api.put_blob(&user, bytes.clone()).await.ok();

        let path = format!("/ipfs/{cid}");
        let response = api.request(Method::GET, &path, None).send().await.unwrap();
        let headers = response.headers().clone();
        assert_eq!(headers["content-length"], bytes.len().to_string());
        assert_eq!(headers["content-type"], "application/octet-stream");
        assert_eq!(headers["content-disposition"], "attachment");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["cache-control"], "public, max-age=31536000, immutable");
        assert_eq!(headers["etag"], format!("\"{cid}\""));
        assert_eq!(response.bytes().await.unwrap(), bytes);

        let head = api.request(Method::HEAD, &path, None).send().await.unwrap();
        assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &headers["content-length"]));
        let cached = api.request(Method::GET, &path, None).header("if-none-match", &headers["etag"]);
        assert_eq!(cached.send().await.unwrap().status(), 304);
    }
    assert_eq!(file_count(&api.blobs.path().join("blobs")), 3);
    assert_eq!(file_count(&api.blobs.path().join("uploads")), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_what_their_id_says_are_not_kept() {
    let api = Api::start().await;
    let user = api.user().await;
    let before = api.written().await;
    let path = format!("/lit-compute/blobs?cid={}", ContentId::of(b"something else"));
    let reply = Reply::of(api.request(Method::PUT, &path, Some(&user)).body("these")).await;
    reply.is_problem(422, "cid_mismatch", Some("cid"));
    assert!(reply.text("detail").contains(&ContentId::of(b"these").to_string()));
    let path = format!("/lit-compute/blobs?cid={}", ContentId::of(b"these"));
    let malformed = Reply::of(api.request(Method::PUT, "/lit-compute/blobs?cid=Qm", Some(&user)).body("these")).await;
    malformed.is_problem(422, "invalid_parameter", Some("cid"));
    assert_eq!(api.written().await, before);
    assert_eq!(file_count(&api.blobs.path().join("blobs")), 0);
    assert_eq!(file_count(&api.blobs.path().join("uploads")), 0);
    Reply::of(api.request(Method::PUT, &path, Some(&user)).body("these")).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_refused_with_or_without_its_length() {
    let api = Api::with_settings(|settings| settings.max_blob_bytes = 1000).await;
    let user = api.user().await;
    let before = api.written().await;
    api.put_blob(&user, vec![0; 1001]).await.is_problem(413, "body_too_large", None);
    api.put_blob(&user, chunked(vec![0; 1001])).await.is_problem(413, "body_too_large", None);
    assert_eq!(api.written().await, before);
    assert_eq!(file_count(&api.blobs.path().join("uploads")), 0);
    api.put_blob(&user, vec![0; 1000]).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_trickles_is_refused_after_its_time() {
    let api = Api::with_settings(|settings| settings.upload_timeout = Duration::from_secs(1)).await;
    let user = api.user().await;
    let trickle = futures::stream::repeat_with(|| Ok::<_, std::io::Error>("x"))
        .then(async |piece| {
            tokio::time::sleep(Duration::from_millis(50)).await;
            piece
        })
        .take(400);
    let started = std::time::Instant::now();
    let reply = api.put_blob(&user, reqwest::Body::wrap_stream(Box::pin(trickle))).await;
    reply.is_problem(408, "body_timeout", None);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(file_count(&api.blobs.path().join("uploads")), 0);
    api.put_blob(&user, "whole").await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_who_signed_in_may_store() {
    let api = Api::start().await;
    let reply = Reply::of(api.request(Method::PUT, "/lit-compute/blobs", None).body("x")).await;
    reply.is_problem(401, "unauthenticated", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_id_is_not_found_and_a_malformed_one_is_named() {
    let api = Api::start().await;
    let unknown = format!("/ipfs/{}", ContentId::of(b"never stored"));
    api.get(&unknown).await.is_problem(404, "unknown_cid", Some("cid"));
    assert_eq!(api.request(Method::HEAD, &unknown, None).send().await.unwrap().status(), 404);
    for bad in ["nonsense", "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR", "..%2f..%2fetc%2fpasswd"] {
        api.get(&format!("/ipfs/{bad}")).await.is_problem(422, "invalid_parameter", Some("cid"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_content_is_cut_short_and_lost_content_is_an_error() {
    let api = Api::start().await;
    let user = api.user().await;
    let bytes = vec![42; 500_000];
    let cid = api.put_blob(&user, bytes.clone()).await.ok().text("cid");
    let file = api.blobs.path().join("blobs").join(&cid);
    let mut damaged = bytes;
    damaged[250_000] ^= 1;
    std::fs::write(&file, &damaged).unwrap();
    let response = api.request(Method::GET, &format!("/ipfs/{cid}"), None).send().await.unwrap();
    assert!(response.bytes().await.is_err(), "the damaged content must not arrive whole");
    std::fs::remove_file(&file).unwrap();
    let lost = api.get(&format!("/ipfs/{cid}")).await;
    lost.is_problem(500, "internal", None);
    assert!(lost.body["id"].is_string() && !lost.body.to_string().contains(&cid), "{lost:?}");
}
