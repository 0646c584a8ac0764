//! How a member without data finds the cluster it was added to: it asks around for the members, until a list has its
//! own URLs in it. A peer that lags behind does not know of the newcomer yet, so one answer proves nothing; and if the
//! newcomer takes the place of one that was removed, at the same URLs, the lagging peer still knows that one.
use std::time::Duration;

use bytes::Bytes;
use detcd_core::{format::wal::Metadata, limits::JOIN_MS, machine::membership::Member, types::ClusterId};
use http::Request;
use http_body_util::Empty;

use super::client;
use crate::{
    config::{Config, parse_url},
    error::Failure,
    host::Host,
};

/// How long a peer may take to answer.
const ASK: Duration = Duration::from_secs(2);
/// Between two rounds of asking.
const PAUSE: Duration = Duration::from_millis(500);

/// Who this member is, and who the others are. `has_run` says that it has data already, if not much.
pub async fn find_cluster(config: &Config, host: &Host, has_run: bool) -> Result<(Metadata, Vec<Member>), Failure> {
    let own = sorted(&config.advertise_peer_urls);
    let others = config.initial_cluster.iter().flat_map(|founder| &founder.peer_urls).filter(|url| !own.contains(url));
    let others: Vec<_> = others.cloned().collect();
    let failed = |reason: String| Failure::Join { reason, urls: own.clone() };
    if others.is_empty() {
        return Err(failed("--initial-cluster names nobody but this member".into()));
    }
    let (start, mut is_told) = (host.clock.now(), false);
    loop {
        let mut reasons = Vec::new();
        for url in &others {
            match ask(host, url).await {
                Ok((cluster, members)) => match members.iter().find(|member| sorted(&member.peer_urls) == own) {
                    // Who has said its name has run, and has data. This may be one that was removed since.
                    Some(member) if !member.name.is_empty() && !has_run => reasons.push(format!(
                        "{url} knows the member {} with these URLs, but that one has started before; if its data \
                         is lost, remove it and add it anew",
                        member.id
                    )),
                    Some(member) => return Ok((Metadata { member: member.id, cluster }, members)),
                    None => reasons.push(format!("{url} knows no member with these URLs")),
                },
                Err(reason) => reasons.push(format!("{url}: {reason}")),
            }
        }
        if host.clock.now().saturating_sub(start).as_millis() as u64 >= JOIN_MS {
            return Err(failed(format!("after {} s, {}", JOIN_MS / 1_000, reasons.join("; "))));
        }
        if !is_told {
            let (reasons, seconds) = (reasons.join("; "), JOIN_MS / 1_000);
            tracing::warn!(target: "peers", reasons, seconds, "no peer knows this member yet; asking again for some time");
            is_told = true;
        }
        host.clock.sleep(PAUSE).await;
    }
}

fn sorted(urls: &[String]) -> Vec<String> {
    let mut urls = urls.to_vec();
    urls.sort();
    urls
}

async fn ask(host: &Host, url: &str) -> Result<(ClusterId, Vec<Member>), String> {
    let (address, _) = parse_url(url).ok_or("no http:// or https:// URL with a port")?;
    let request = Request::get("/members").header("Host", address).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let answer = client::ask(host, url, request, ASK).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let cluster = answer.headers().get("X-Etcd-Cluster-ID").and_then(|id| id.to_str().ok());
    let cluster = cluster.and_then(|id| u64::from_str_radix(id, 16).ok()).ok_or("it does not say of which cluster")?;
    let members = serde_json::from_slice(answer.body()).map_err(|error| format!("no list of members: {error}"))?;
    Ok((ClusterId(cluster), members))
}
