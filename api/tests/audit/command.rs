//! The command and its exit codes.

use std::process::Output;

use alloy::primitives::U256;
use devnet::binary;

use crate::chain::{Chain, REQUESTER};
use crate::world::Books;

async fn audit(chain: &Chain, books: &Books, rpc_url: &str, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(binary("littoral-api").unwrap());
    command.arg("audit").args(args).env("DATABASE_URL", books.database.url()).env("RPC_URL", rpc_url);
    command.env("LITTORAL_DEPLOYMENT", &chain.manifest.path).output().await.unwrap()
}

#[tokio::test]
async fn the_exit_code_is_the_verdict() {
    let chain = Chain::start().await;
    chain.deposit(REQUESTER, 5000).await;
    let books = Books::of(&chain).await;
    let rpc_url = chain.anvil.rpc_url();

    let clean = audit(&chain, &books, rpc_url, &["--block", "latest"]).await;
    let text = String::from_utf8(clean.stdout).unwrap();
    assert_eq!(clean.status.code(), Some(0), "{text}");
    assert!(text.contains("nothing differs"), "{text}");

    sqlx::query("update escrow_account set thawing = 3").execute(&books.pool).await.unwrap();
    let differs = audit(&chain, &books, rpc_url, &["--json"]).await;
    assert_eq!(differs.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&differs.stdout).unwrap();
    assert_eq!((&report["clean"], &report["differences"][0]["what"]), (&false.into(), &"row".into()));
    let escrow = chain.escrow().account(REQUESTER.address(), crate::chain::COIN).call().await.unwrap();
    assert_eq!(U256::from(escrow.thawing), U256::ZERO);

    let nobody = format!("http://127.0.0.1:{}", devnet::ports::free_port().unwrap());
    for (url, args) in [(nobody.as_str(), &[][..]), (rpc_url, &["--block", "1000000", "--wait-secs", "0"][..])] {
        let unknown = audit(&chain, &books, url, args).await;
        assert_eq!(unknown.status.code(), Some(2), "{url} {args:?}");
        assert!(unknown.stdout.is_empty());
    }
}
