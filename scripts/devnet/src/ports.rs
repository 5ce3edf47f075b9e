//! Free loopback ports.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::bail;
use rand::Rng;

/// Servers take ports below the range from which the kernel serves outgoing connections (32768 and up on Linux), so that
/// a server which is restarted finds its port still free.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port on 127.0.0.1 that nothing listens on at the moment.
///
/// Another process may take it first, so callers must retry with another one when their server cannot bind.
///
/// # Errors
/// When none was found in a thousand draws.
pub fn free_port() -> anyhow::Result<u16> {
    let mut rng = rand::rng();
    for _ in 0..1000 {
        let port = rng.random_range(RANGE);
        if is_free(port) {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1 between {} and {}", RANGE.start, RANGE.end)
}

/// Whether a server could bind `port` on 127.0.0.1 now.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// `preferred` when it is free, otherwise any free port.
///
/// # Errors
/// As [`free_port`].
pub fn free_port_or(preferred: u16) -> anyhow::Result<u16> {
    if is_free(preferred) { Ok(preferred) } else { free_port() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_not_free_and_not_preferred() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port().unwrap())).unwrap();
        let taken = holder.local_addr().unwrap().port();
        assert!(!is_free(taken));
        assert_ne!(free_port_or(taken).unwrap(), taken);
        drop(holder);
        assert_eq!(free_port_or(taken).unwrap(), taken);
    }
}
