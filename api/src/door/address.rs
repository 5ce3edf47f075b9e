//! Whose address a request comes from. What a header says counts only where the operator's own proxies wrote it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

/// The other end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// The client's address. Of IPv6, the network that a household or a host has: any of its addresses costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddress(pub IpAddr);

const FORWARDED_FOR: &str = "x-forwarded-for";
/// Bytes of an IPv6 address that are its network.
const NETWORK_BYTES: usize = 8;

impl ClientAddress {
    /// Of a request from `peer`. Each of `trusted` proxies appends whom it was called by to `X-Forwarded-For`; the last one there
    /// that is no such proxy is the client, and what stands before it is what the client made up.
    #[must_use]
    pub fn of(peer: Peer, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
        let mut client = peer.0.ip().to_canonical();
        let lines: Vec<&str> = headers.get_all(FORWARDED_FOR).iter().map(|line| line.to_str().unwrap_or("?")).collect();
        for entry in lines.iter().flat_map(|line| line.split(',')).rev() {
            if !is_trusted(&client) {
                break;
            }
            let Some(address) = parse(entry.trim()) else { break };
            client = address;
        }
        Self(client)
    }

    /// A word for it that fits into a Redis key.
    #[must_use]
    pub fn word(self) -> String {
        match self.0 {
            IpAddr::V4(address) => format!("ip-{address}"),
            IpAddr::V6(address) => format!("ip-{}", hex::encode(&address.octets()[..NETWORK_BYTES])),
        }
    }
}

/// An address, with a port or without.
fn parse(entry: &str) -> Option<IpAddr> {
    let bracketed = || entry.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let address = entry.parse().ok().or_else(|| entry.parse().ok().map(|with_port: SocketAddr| with_port.ip()));
    address.or_else(bracketed).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        ClientAddress::of(Peer(peer.parse().unwrap()), &headers, &trusted).0.to_string()
    }

    #[test]
    fn without_trusted_proxies_the_header_says_nothing() {
        assert_eq!(client("203.0.113.7:1", &["198.51.100.1"], &[]), "203.0.113.7");
        assert_eq!(client("203.0.113.7:1", &["198.51.100.1"], &["10.0.0.0/8"]), "203.0.113.7");
    }

    #[test]
    fn what_a_client_made_up_stands_before_what_the_proxies_wrote() {
        let trusted = ["10.0.0.0/8", "fd00::/8"];
        assert_eq!(client("10.0.0.1:1", &["1.1.1.1, 203.0.113.7"], &trusted), "203.0.113.7");
        assert_eq!(client("10.0.0.1:1", &["1.1.1.1, 203.0.113.7, 10.0.0.2"], &trusted), "203.0.113.7");
        assert_eq!(client("10.0.0.1:1", &["1.1.1.1", "203.0.113.7:4711"], &trusted), "203.0.113.7");
        assert_eq!(client("[fd00::1]:1", &["[2001:db8::1]:443"], &trusted), "2001:db8::1");
        assert_eq!(client("[::ffff:10.0.0.1]:1", &["203.0.113.7"], &trusted), "203.0.113.7");
        // A client that says it is a proxy gets no further than its own address.
        assert_eq!(client("10.0.0.1:1", &["8.8.8.8, 10.9.9.9, 203.0.113.7"], &trusted), "203.0.113.7");
    }

    #[test]
    fn what_is_no_address_ends_the_search() {
        let trusted = ["10.0.0.0/8"];
        for nonsense in ["", "unknown", "1.1.1.1, ", "_hidden", "1.1.1.1;rl:production"] {
            assert_eq!(client("10.0.0.1:1", &[nonsense], &trusted), "10.0.0.1", "{nonsense:?}");
        }
    }

    #[test]
    fn its_word_has_no_colon_and_an_ipv6_network_is_one() {
        let word = |text: &str| ClientAddress(text.parse().unwrap()).word();
        assert_eq!(word("203.0.113.7"), "ip-203.0.113.7");
        assert_eq!(word("2001:db8:1:2::1"), word("2001:db8:1:2:ffff::9"));
        assert_ne!(word("2001:db8:1:2::1"), word("2001:db8:1:3::1"));
        assert!(!word("2001:db8:1:2::1").contains(':'));
    }
}
