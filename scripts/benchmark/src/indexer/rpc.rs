//! JSON-RPC as bare as it can be: what is measured must not wait for a client, and what is compared must not come through
//! the code that is compared.

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Rpc {
    client: reqwest::Client,
    url: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    result: Option<T>,
    error: Option<Value>,
}

impl<T> Answer<T> {
    /// The result, if it is more than null.
    fn read(self, method: &str) -> anyhow::Result<Option<T>> {
        if let Some(error) = self.error {
            bail!("{method}: {error}");
        }
        Ok(self.result)
    }
}

impl Rpc {
    pub fn new(url: &str) -> Self {
        Self { client: reqwest::Client::new(), url: url.to_owned() }
    }

    /// One request that is answered with more than null.
    pub async fn call<T: DeserializeOwned>(&self, method: &str, params: Value) -> anyhow::Result<T> {
        self.ask(method, params).await?.with_context(|| format!("{method}: no result"))
    }

    /// One request whose answer, null perhaps, says nothing.
    pub async fn tell(&self, method: &str, params: Value) -> anyhow::Result<()> {
        self.ask::<Value>(method, params).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(&self, method: &str, params: Value) -> anyhow::Result<Option<T>> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer = self.client.post(&self.url).json(&body).send().await?.bytes().await?;
        let answer: Answer<T> = serde_json::from_slice(&answer).with_context(|| format!("the answer to {method}"))?;
        answer.read(method)
    }

    /// Many requests of one method at once; fails if one of them does.
    pub async fn batch(&self, method: &str, params: Vec<Value>) -> anyhow::Result<()> {
        let count = params.len();
        let body: Vec<Value> = (0..count)
            .zip(params)
            .map(|(id, params)| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
            .collect();
        let answers: Vec<Answer<Value>> = self.client.post(&self.url).json(&body).send().await?.json().await?;
        ensure!(answers.len() == count, "{count} times {method}: {} answers", answers.len());
        answers.into_iter().try_for_each(|answer| answer.read(method).map(drop))
    }

    /// Asks, and throws the answer away as it arrives; how many bytes it had.
    pub async fn discard(&self, method: &str, params: Value) -> anyhow::Result<usize> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let mut answer = self.client.post(&self.url).json(&body).send().await?.error_for_status()?;
        let mut bytes = 0;
        while let Some(chunk) = answer.chunk().await? {
            bytes += chunk.len();
        }
        Ok(bytes)
    }
}
