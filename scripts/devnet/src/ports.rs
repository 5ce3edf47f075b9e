//! Free loopback ports.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

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

/// `preferred` when it is given and free, otherwise any free port.
///
/// # Errors
/// As [`free_port`].
pub fn free_port_or(preferred: Option<u16>) -> anyhow::Result<u16> {
    preferred.filter(|port| is_free(*port)).map_or_else(free_port, Ok)
}

/// Whether the process `pid` itself listens on `port` of 127.0.0.1, so that nobody else's server there is mistaken for it.
///
/// Where the kernel does not tell (no `/proc`), whether anyone does.
pub fn listens(pid: u32, port: u16) -> bool {
    let Ok(table) = fs::read_to_string("/proc/net/tcp") else {
        return TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    };
    let local = format!("0100007F:{port:04X}");
    // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …; state 0A is LISTEN.
    let inodes = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1) == Some(&local.as_str()) && fields.get(3) == Some(&"0A");
        if is_it { fields.get(9).map(|inode| format!("socket:[{inode}]")) } else { None }
    });
    let sockets: Vec<String> = inodes.collect();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_not_free_and_not_preferred() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port().unwrap())).unwrap();
        let taken = holder.local_addr().unwrap().port();
        assert!(!is_free(taken));
        assert_ne!(free_port_or(Some(taken)).unwrap(), taken);
        assert!(listens(std::process::id(), taken));
        let mut other = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        assert!(!listens(other.id(), taken), "another process does not");
        other.kill().unwrap();
        other.wait().unwrap();
        drop(holder);
        assert!(!listens(std::process::id(), taken));
        assert_eq!(free_port_or(Some(taken)).unwrap(), taken);
    }
}
