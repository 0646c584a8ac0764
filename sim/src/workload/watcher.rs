//! A watcher that follows a range of keys, over whatever happens to its streams.
use std::{sync::Arc, time::Duration};

use detcd_node::{
    host::Net,
    proto::{etcdserverpb as pb, mvccpb},
};
use futures::channel::mpsc;
use tonic::Streaming;

use super::{Channel, Endpoints, client::key_value, key, keys_end};
use crate::{
    history::{Event, Keys, NO_ANSWER, Watched, WatchedEvent, WatcherId},
    scenario::Workload,
    seed::{ChaCha8Rng, Rng, Seed},
    world::{clock::SimTime, recorder::Recorder},
};

/// How often it asks how far it is, and after how long without a word it goes elsewhere.
const PROGRESS: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(5);

pub struct Watcher {
    id: WatcherId,
    net: Arc<dyn Net>,
    recorder: Recorder,
    time: SimTime,
    rng: ChaCha8Rng,
    endpoints: Endpoints,
    keys: Keys,
    previous: bool,
    timeout: Duration,
    /// Everything before this revision was seen; 0 before the first watch.
    next: i64,
}

impl Watcher {
    pub fn new(
        number: u64,
        options: &Workload,
        nodes: usize,
        net: Arc<dyn Net>,
        recorder: &Recorder,
        seed: Seed,
    ) -> Watcher {
        let mut rng = seed.child("watcher", number).rng();
        let first = rng.next_u64() % options.keys;
        let end = if rng.next_u64().is_multiple_of(3) { None } else { Some(keys_end()) };
        Watcher {
            id: WatcherId(number),
            net,
            recorder: recorder.clone(),
            time: SimTime::current(),
            endpoints: Endpoints::new(nodes, rng.next_u64()),
            keys: Keys { start: key(first), end },
            previous: rng.next_u64().is_multiple_of(2),
            timeout: Duration::from_millis(options.timeout_ms),
            rng,
            next: 0,
        }
    }

    /// Watches until it is dropped: the run's end finds it watching.
    pub async fn run(mut self) {
        loop {
            if let Err(reason) = self.watch().await {
                self.record(Watched::Ended { reason, wanted: false, compacted: 0 });
            }
            let draw = self.rng.next_u64();
            self.endpoints.leave(draw);
            self.time.sleep_until(self.time.now() + Duration::from_millis(100)).await;
        }
    }

    fn record(&self, what: Watched) {
        self.recorder.record(Event::Watch { watcher: self.id, what });
    }

    /// One watch, to its end.
    async fn watch(&mut self) -> Result<(), String> {
        let node = self.endpoints.current();
        let Ok(channel) = Channel::connect(&*self.net, node, self.timeout).await else { return Ok(()) };
        let mut client = pb::watch_client::WatchClient::with_origin(channel, Channel::origin(node));
        let (requests, stream) = mpsc::unbounded();
        let start = self.next;
        self.record(Watched::Asked { node, keys: self.keys.clone(), start, previous: self.previous });
        let create = pb::WatchCreateRequest {
            key: bytes::Bytes::copy_from_slice(self.keys.start.as_bytes()),
            range_end: self
                .keys
                .end
                .as_ref()
                .map(|end| bytes::Bytes::copy_from_slice(end.as_bytes()))
                .unwrap_or_default(),
            start_revision: start,
            prev_kv: self.previous,
            ..Default::default()
        };
        let ask = |union| requests.unbounded_send(pb::WatchRequest { request_union: Some(union) });
        let gone = |_| "the stream is gone".to_owned();
        ask(pb::watch_request::RequestUnion::CreateRequest(create)).map_err(gone)?;
        let opened = madsim::time::timeout(self.timeout, client.watch(stream)).await;
        let mut responses = opened.map_err(|_| NO_ANSWER)?.map_err(|status| status.to_string())?.into_inner();
        // Now and then a watcher changes its mind about whom to watch.
        let until = self.time.now() + Duration::from_millis(5_000 + self.rng.next_u64() % 30_000);
        let mut quiet = Duration::ZERO;
        while self.time.now() < until {
            match madsim::time::timeout(PROGRESS, next(&mut responses)).await {
                Ok(response) => {
                    quiet = Duration::ZERO;
                    self.take(response?)?;
                }
                Err(_) => {
                    quiet += PROGRESS;
                    if quiet >= SILENCE {
                        return Err("silence".to_owned());
                    }
                    let progress = pb::WatchProgressRequest {};
                    ask(pb::watch_request::RequestUnion::ProgressRequest(progress)).map_err(gone)?;
                }
            }
        }
        self.record(Watched::Ended { reason: "changed its mind".to_owned(), wanted: true, compacted: 0 });
        Ok(())
    }

    fn take(&mut self, response: pb::WatchResponse) -> Result<(), String> {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.canceled {
            let (reason, compacted) = (response.cancel_reason, response.compact_revision);
            self.record(Watched::Ended { reason, wanted: false, compacted });
            self.next = self.next.max(response.compact_revision);
            return Err("canceled".to_owned());
        }
        if response.created {
            if self.next == 0 {
                self.next = revision + 1;
            }
            self.record(Watched::Created { revision });
        } else if response.events.is_empty() {
            self.next = self.next.max(revision + 1);
            self.record(Watched::Progress { revision });
        } else {
            let events: Vec<_> = response.events.into_iter().map(watched).collect();
            let last = events.iter().map(|event| event.kv.modified).max().unwrap_or(0);
            self.next = self.next.max(last + 1);
            self.record(Watched::Events { revision, events });
        }
        Ok(())
    }
}

async fn next(responses: &mut Streaming<pb::WatchResponse>) -> Result<pb::WatchResponse, String> {
    match responses.message().await {
        Ok(Some(response)) => Ok(response),
        Ok(None) => Err("the stream ended".to_owned()),
        Err(status) => Err(status.to_string()),
    }
}

fn watched(event: mvccpb::Event) -> WatchedEvent {
    let deleted = event.r#type == mvccpb::event::EventType::Delete as i32;
    WatchedEvent { kv: key_value(event.kv.unwrap_or_default()), deleted, previous: event.prev_kv.map(key_value) }
}
