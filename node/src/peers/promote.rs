//! Asks the leader, on behalf of a client, to promote a learner.
use std::time::Duration;

use bytes::Bytes;
use detcd_core::{error::Refusal, limits::REQUEST_WAIT_MS, machine::membership::Member, types::MemberId};
use http::{Request, StatusCode};
use http_body_util::Empty;

use super::client;
use crate::{config::parse_url, host::Host};

/// The members afterwards. The error is what the leader says; `None` if it could not be asked or does not lead.
pub async fn ask_to_promote(host: &Host, url: &str, learner: MemberId) -> Result<Vec<Member>, Option<Refusal>> {
    let (address, _) = parse_url(url).ok_or(None)?;
    let request = Request::post(format!("/members/promote/{}", learner.0)).header("Host", address);
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| None)?;
    let within = Duration::from_millis(REQUEST_WAIT_MS);
    let answer = client::ask(host, url, request, within).await.map_err(|_| None)?;
    match answer.status() {
        StatusCode::OK => serde_json::from_slice(answer.body()).map_err(|_| None),
        StatusCode::NOT_FOUND => Err(Some(Refusal::MemberNotFound)),
        StatusCode::PRECONDITION_FAILED => {
            // etcd's peers tell the two apart by their texts.
            let text = String::from_utf8_lossy(answer.body());
            let ready = !text.contains(&Refusal::LearnerNotReady.to_string());
            Err(Some(if ready { Refusal::NotLearner } else { Refusal::LearnerNotReady }))
        }
        _ => {
            let text = String::from_utf8_lossy(answer.body());
            let known = [Refusal::NotEnoughStarted, Refusal::Timeout, Refusal::TimeoutLeaderFailed];
            Err(known.into_iter().find(|refusal| text.trim() == format!("etcdserver: {refusal}")))
        }
    }
}
