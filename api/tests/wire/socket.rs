//! A Socket.IO client as small as can be, which reads only when it is told to.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Socket {
    stream: BufReader<TcpStream>,
    acks: u32,
    events: VecDeque<(String, Value)>,
}

impl Socket {
    /// Connects to the namespace with `token`. An error is the server's.
    pub async fn connect(url: &str, token: &str) -> Result<Self, Value> {
        let address = url.trim_start_matches("http://");
        let socket = TcpSocket::new_v4().unwrap();
        // What it does not read is soon not taken from the server either.
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
        let hello = format!(
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(hello.as_bytes()).await.unwrap();
        let mut socket = Self { stream: BufReader::new(stream), acks: 0, events: VecDeque::new() };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        assert!(socket.text().await.unwrap().starts_with('0'));
        socket.send(&format!("40/lit-compute,{}", serde_json::json!({ "token": token }))).await;
        loop {
            let said = socket.text().await.expect("the server hung up");
            if said.starts_with("40/lit-compute,") {
                return Ok(socket);
            }
            if let Some(error) = said.strip_prefix("44/lit-compute,") {
                return Err(serde_json::from_str(error).unwrap());
            }
        }
    }

    /// Emits an event and returns what is acknowledged.
    pub async fn ask(&mut self, event: &str, data: Value) -> Value {
        self.acks += 1;
        let id = self.acks;
        self.send(&format!("42/lit-compute,{id}{}", serde_json::json!([event, data]))).await;
        loop {
            let said = self.text().await.expect("the server hung up");
            if let Some(answer) = said.strip_prefix(&format!("43/lit-compute,{id}")) {
                let mut answer: Vec<Value> = serde_json::from_str(answer).unwrap();
                return answer.remove(0);
            }
            self.events.extend(event_of(&said));
        }
    }

    /// Emits an event, without an answer.
    pub async fn say(&mut self, event: &str, data: Value) {
        self.send(&format!("42/lit-compute,{}", serde_json::json!([event, data]))).await;
    }

    /// The next event; nothing once the server has ended the connection or the namespace.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        loop {
            let said = self.text().await?;
            if said.starts_with("41/lit-compute") {
                return None;
            }
            if let Some(event) = event_of(&said) {
                return Some(event);
            }
        }
    }

    async fn send(&mut self, text: &str) {
        let mut frame = vec![0x81];
        match u8::try_from(text.len()) {
            Ok(length) if length < 126 => frame.push(0x80 | length),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
            }
        }
        // Masked with nothing.
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        self.stream.get_mut().write_all(&frame).await.unwrap();
    }

    /// The next text, other than a ping, which is answered.
    async fn text(&mut self) -> Option<String> {
        loop {
            let text = timeout(PATIENCE, self.frame()).await.expect("nothing comes")?;
            if text != "2" {
                return Some(text);
            }
            self.send("3").await;
        }
    }

    async fn frame(&mut self) -> Option<String> {
        let [kind, length] = [self.stream.read_u8().await.ok()?, self.stream.read_u8().await.ok()?];
        let length = match length {
            126 => usize::from(self.stream.read_u16().await.ok()?),
            127 => usize::try_from(self.stream.read_u64().await.ok()?).unwrap(),
            length => usize::from(length),
        };
        let mut text = vec![0; length];
        self.stream.read_exact(&mut text).await.ok()?;
        (kind == 0x81).then(|| String::from_utf8(text).unwrap())
    }
}

fn event_of(text: &str) -> Option<(String, Value)> {
    let event: Vec<Value> = serde_json::from_str(text.strip_prefix("42/lit-compute,")?).unwrap();
    Some((event[0].as_str().unwrap().to_owned(), event[1].clone()))
}
