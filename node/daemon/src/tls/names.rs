//! Whether a peer's certificate names the address that the peer calls from. etcd's rule:
//!
//! - a certificate without host names and addresses says nothing of hosts, and passes, whatever else it names;
//! - one that has the address passes;
//! - of one that has host names, one must be the address's: by asking for the address's name (which may also end as a
//!   wildcard name does), or by asking for a name's addresses.
//!
//! Where members sit behind address translation this cannot hold: `--peer-skip-client-san-verification` turns it off.
use std::{ffi::CStr, io, net::IpAddr};

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{net::lookup_host, task::spawn_blocking};
use webpki::EndEntityCert;

pub async fn check(certificate: &CertificateDer<'_>, from: IpAddr) -> io::Result<()> {
    let from = from.to_canonical();
    let certificate = EndEntityCert::try_from(certificate).map_err(io::Error::other)?;
    let names: Vec<String> = certificate.valid_dns_names().map(str::to_owned).collect();
    match certificate.verify_is_valid_for_subject_name(&ServerName::from(from)) {
        Ok(()) => return Ok(()),
        Err(webpki::Error::CertNotValidForName(context)) if !context.presented.iter().any(|name| is_hosts(name)) => {
            return Ok(());
        }
        Err(_) => {}
    }
    if names.is_empty() {
        return Err(io::Error::other(format!("the certificate has addresses, and {from} is none of them")));
    }
    if is_one(from, &names).await {
        return Ok(());
    }
    Err(io::Error::other(format!("{from} is none of the hosts that the certificate names: {}", names.join(", "))))
}

/// Whether a name, as the verifier shows it, is a host's name or address; and not a URI, such as SPIFFE's, or a mailbox.
fn is_hosts(name: &str) -> bool {
    name.starts_with("DnsName") || name.starts_with("IpAddress")
}

/// What cannot be looked up is not the address's.
async fn is_one(address: IpAddr, names: &[String]) -> bool {
    let found = spawn_blocking(move || name_of(address)).await;
    if found.is_ok_and(|found| found.is_ok_and(|found| is_among(&found, names))) {
        return true;
    }
    for name in names.iter().filter(|name| !name.starts_with("*.")) {
        let mut addresses = lookup_host((name.as_str(), 0)).await.into_iter().flatten();
        if addresses.any(|found| found.ip().to_canonical() == address) {
            return true;
        }
    }
    false
}

fn is_among(found: &str, names: &[String]) -> bool {
    let found = found.strip_suffix('.').unwrap_or(found).to_ascii_lowercase();
    names.iter().any(|name| {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix('*') {
            Some(ending) => found.len() > ending.len() && found.ends_with(ending),
            None => found == name,
        }
    })
}

/// The name of an address, by the system's resolver. Blocks.
fn name_of(address: IpAddr) -> io::Result<String> {
    let mut name = [0; libc::NI_MAXHOST as usize];
    let look_up = |socket: *const libc::sockaddr, length: usize, name: &mut [libc::c_char]| {
        // SAFETY: `socket` points to `length` bytes of a socket address that the caller holds, and `name` to as many
        // bytes as are said; the service is not asked for.
        unsafe {
            let (length, room) = (length as libc::socklen_t, name.len() as libc::socklen_t);
            libc::getnameinfo(socket, length, name.as_mut_ptr(), room, std::ptr::null_mut(), 0, libc::NI_NAMEREQD)
        }
    };
    let code = match address {
        IpAddr::V4(ip) => {
            let socket = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: 0,
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                sin_zero: [0; 8],
            };
            look_up((&raw const socket).cast(), size_of_val(&socket), &mut name)
        }
        IpAddr::V6(ip) => {
            let socket = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                sin6_scope_id: 0,
            };
            look_up((&raw const socket).cast(), size_of_val(&socket), &mut name)
        }
    };
    if code != 0 {
        return Err(io::Error::other(format!("the resolver knows no name of {address}")));
    }
    let bytes = name.map(|byte| byte as u8);
    let name = CStr::from_bytes_until_nul(&bytes).map_err(io::Error::other)?;
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        rcgen::generate_simple_self_signed(names).unwrap().cert.der().clone()
    }

    #[tokio::test]
    async fn certificates_name_where_their_holders_call_from() {
        #[track_caller]
        fn ok(result: io::Result<()>) {
            result.unwrap();
        }
        let from = |text: &str| text.parse::<IpAddr>().unwrap();
        ok(check(&certificate(&[]), from("10.0.0.9")).await);
        ok(check(&certificate(&["10.0.0.9", "elsewhere.invalid"]), from("10.0.0.9")).await);
        ok(check(&certificate(&["10.0.0.9"]), from("::ffff:10.0.0.9")).await);
        ok(check(&certificate(&["fd00::1"]), from("fd00::1")).await);
        ok(check(&certificate(&["10.0.0.8", "localhost"]), from("127.0.0.1")).await);
        let refused = async |names: &[&str], address: &str, part: &str| {
            let error = check(&certificate(names), from(address)).await.unwrap_err().to_string();
            assert!(error.contains(address) && error.contains(part), "{error}");
        };
        let mut others = rcgen::CertificateParams::default();
        others.subject_alt_names = vec![
            rcgen::SanType::URI("spiffe://example.org/etcd/n1".try_into().unwrap()),
            rcgen::SanType::Rfc822Name("n1@example.org".try_into().unwrap()),
        ];
        let key = rcgen::KeyPair::generate().unwrap();
        ok(check(others.self_signed(&key).unwrap().der(), from("10.0.0.9")).await);
        others.subject_alt_names.push(rcgen::SanType::IpAddress(from("10.0.0.8")));
        assert!(check(others.self_signed(&key).unwrap().der(), from("10.0.0.9")).await.is_err());
        refused(&["10.0.0.8"], "10.0.0.9", "none of them").await;
        refused(&["localhost"], "127.9.9.9", "localhost").await;
        refused(&["10.0.0.8", "*.elsewhere.invalid"], "127.0.0.1", "*.elsewhere.invalid").await;
    }

    #[test]
    fn found_names_are_compared_as_hosts_are() {
        let names = ["a.example", "*.b.example"].map(str::to_owned);
        for found in ["a.example", "A.Example.", "x.b.example", "x.y.b.example"] {
            assert!(is_among(found, &names), "{found}");
        }
        for found in ["", "x.a.example", "b.example", ".b.example", "xb.example"] {
            assert!(!is_among(found, &names), "{found}");
        }
    }

    #[test]
    fn the_system_knows_this_machine() {
        assert!(name_of("127.0.0.1".parse().unwrap()).unwrap().contains("localhost"));
    }
}
