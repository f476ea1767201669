//! Addresses: where an account may call from, and which network a call is counted for.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Most networks in one list.
pub const MAX_CIDRS: usize = 100;

/// A network in its canonical spelling, host bits cleared: `10.0.0.0/8`, `2001:db8::/32`.
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet = match text.parse::<IpAddr>() {
        Ok(address) => address.into(),
        Err(_) => text
            .parse()
            .map_err(|_| "must be networks such as 10.0.0.0/8".to_owned())?,
    };
    Ok(net.trunc())
}

/// Whether an address is inside one of the networks; an empty list stands for every address, and an
/// unknown address is in none.
pub fn allows(cidrs: &[IpNet], address: Option<IpAddr>) -> bool {
    let inside = |address| cidrs.iter().any(|net| net.contains(&canonical(address)));
    cidrs.is_empty() || address.is_some_and(inside)
}

/// The network whose attempts are counted together: one IPv4 address, or an IPv6 /64, which is what
/// one subscriber gets.
pub fn source(address: IpAddr) -> IpNet {
    let address = canonical(address);
    let length = if address.is_ipv4() { 32 } else { 64 };
    IpNet::new(address, length)
        .expect("32 and 64 are prefix lengths")
        .trunc()
}

/// An IPv4 address that arrived through an IPv6 socket is still that IPv4 address.
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// The address of the client behind trusted proxies: the last one in `forwarded` (the values of
/// `x-forwarded-for`, outermost first) that is not itself a trusted proxy.
pub fn client(peer: IpAddr, forwarded: &[&str], proxies: &[IpNet]) -> IpAddr {
    let is_proxy = |address: IpAddr| proxies.iter().any(|net| net.contains(&canonical(address)));
    if !is_proxy(peer) {
        return peer;
    }
    let hops = forwarded.iter().flat_map(|value| value.split(','));
    let hops: Vec<Option<IpAddr>> = hops.map(|hop| parse_hop(hop.trim())).collect();
    let mut client = peer;
    for hop in hops.into_iter().rev() {
        // What cannot be read, and all before it, was not written by a proxy of ours.
        let Some(hop) = hop else { break };
        client = hop;
        if !is_proxy(hop) {
            break;
        }
    }
    canonical(client)
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let inside = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = inside.unwrap_or(text).parse().ok();
    address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

/// Whether only this machine can reach an address.
pub fn is_loopback(address: IpAddr) -> bool {
    canonical(address).is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn an_address_is_compared_as_what_it_is() {
        let nets = [
            parse_cidr("10.1.2.3/8").expect("net"),
            parse_cidr("2001:db8::1").expect("host"),
        ];
        assert_eq!(nets[0].to_string(), "10.0.0.0/8");
        assert!(allows(&nets, Some(ip("10.255.0.1"))));
        assert!(allows(&nets, Some(ip("::ffff:10.0.0.1"))));
        assert!(allows(&nets, Some(ip("2001:db8::1"))));
        assert!(!allows(&nets, Some(ip("2001:db8::2"))));
        assert!(!allows(&nets, None));
        assert!(allows(&[], None));
        assert!(parse_cidr("10.0.0.0/33").is_err());
    }

    #[test]
    fn one_subscriber_is_one_source() {
        assert_eq!(source(ip("192.0.2.7")).to_string(), "192.0.2.7/32");
        assert_eq!(
            source(ip("2001:db8:1:2:3:4:5:6")),
            source(ip("2001:db8:1:2::1"))
        );
        assert_ne!(source(ip("2001:db8:1:2::1")), source(ip("2001:db8:1:3::1")));
    }

    #[test]
    fn a_forwarded_address_is_believed_from_trusted_proxies_only() {
        let proxies = [parse_cidr("10.0.0.0/8").expect("net")];
        let client = |peer, forwarded: &[&str]| client(ip(peer), forwarded, &proxies).to_string();
        assert_eq!(client("192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6, 203.0.113.9, 10.0.0.2"]),
            "203.0.113.9"
        );
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6", "203.0.113.9"]),
            "203.0.113.9"
        );
        assert_eq!(client("10.0.0.1", &["6.6.6.6, junk"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["203.0.113.9:5678"]), "203.0.113.9");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:5678"]), "2001:db8::1");
    }
}
