//! Addresses: where an account may call from, which network a call is counted for, and where on the
//! Internet something may be fetched from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Most networks in one list.
pub const MAX_CIDRS: usize = 100;

/// All of IPv6 that was ever given out (RFC 4291).
const GLOBAL_UNICAST: IpNet = v6([0x2000, 0], 3);

const SPECIAL: [IpNet; 18] = [
    // "This network" (RFC 791).
    v4([0, 0, 0, 0], 8),
    // Private use (RFC 1918).
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    // Shared, behind the translators of carriers (RFC 6598).
    v4([100, 64, 0, 0], 10),
    // This machine (RFC 1122).
    v4([127, 0, 0, 0], 8),
    // Link-local (RFC 3927): where clouds keep secrets.
    v4([169, 254, 0, 0], 16),
    // Protocol assignments (RFC 6890), and relays of 6to4 (RFC 7526).
    v4([192, 0, 0, 0], 24),
    v4([192, 88, 99, 0], 24),
    // Documentation (RFC 5737) and benchmarks (RFC 2544).
    v4([192, 0, 2, 0], 24),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([198, 18, 0, 0], 15),
    // Multicast, reserved and broadcast.
    v4([224, 0, 0, 0], 3),
    // Protocol assignments (RFC 2928), Teredo among them, which carries an IPv4 address.
    v6([0x2001, 0], 23),
    // 6to4 (RFC 3056), which does so as well.
    v6([0x2002, 0], 16),
    // Documentation (RFC 3849, RFC 9637).
    v6([0x2001, 0xdb8], 32),
    v6([0x3fff, 0], 20),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), length)
}

const fn v6([a, b]: [u16; 2], length: u8) -> IpNet {
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0)), length)
}

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

/// Whether a URL leads to this machine.
pub fn is_of_this_machine(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => is_loopback(ip.into()),
        Some(url::Host::Ipv6(ip)) => is_loopback(ip.into()),
        None => false,
    }
}

/// Whether an address is somewhere on the Internet, and not of a network of somebody's own or reserved
/// for a purpose (the IANA registries of special-purpose addresses).
pub fn is_public(address: IpAddr) -> bool {
    let address = canonical(address);
    let is_global = match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(_) => GLOBAL_UNICAST.contains(&address),
    };
    is_global && !SPECIAL.iter().any(|net| net.contains(&address))
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
    fn what_is_not_on_the_internet_is_not_public() {
        for public in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.32.0.0",
            "223.255.255.255",
            "2001:4860::8888",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
        ] {
            assert!(is_public(ip(public)), "{public}");
        }
        for other in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.19.255.255",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            // The forms that carry an IPv4 address: compatible, NAT64, 6to4, Teredo.
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:a00:1::",
            "2001::a00:1",
            "2001:db8::1",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(ip(other)), "{other}");
        }
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
