//! A client that reads and writes keys, one call at a time, at a pace of its own.
use std::{sync::Arc, time::Duration};

use detcd_node::{
    api::TRACE_KEY,
    host::Net,
    proto::{etcdserverpb as pb, mvccpb},
};
use tonic::{Code, Status, metadata::MetadataValue};

use super::{Channel, End, Endpoints, Seen, key, keys_end};
use crate::{
    history::{Answer, Body, Event, KeyValue, Keys, NO_ANSWER, OpId, Outcome, Request, Text},
    scenario::{Mix, Workload},
    seed::{ChaCha8Rng, Rng, Seed},
    world::{clock::SimTime, recorder::Recorder},
};

type Kv = pb::kv_client::KvClient<Channel>;

pub struct Client {
    number: u64,
    options: Workload,
    net: Arc<dyn Net>,
    recorder: Recorder,
    seen: Seen,
    time: SimTime,
    rng: ChaCha8Rng,
    /// Draws how reads are to be: apart, so that they shift no other choice.
    shapes: ChaCha8Rng,
    /// The highest revision that it was told.
    revision: i64,
    endpoints: Endpoints,
    connection: Option<Kv>,
    calls: u64,
    /// Failures in a row at the present node.
    failures: u32,
}

impl Client {
    pub fn new(
        number: u64,
        options: &Workload,
        nodes: usize,
        net: Arc<dyn Net>,
        recorder: &Recorder,
        seen: &Seen,
        seed: Seed,
    ) -> Client {
        Client {
            seen: seen.clone(),
            number,
            options: options.clone(),
            net,
            recorder: recorder.clone(),
            time: SimTime::current(),
            rng: seed.child("client", number).rng(),
            shapes: seed.child("shapes", number).rng(),
            revision: 1,
            endpoints: Endpoints::new(nodes, number),
            connection: None,
            calls: 0,
            failures: 0,
        }
    }

    /// Calls until the end.
    pub async fn run(mut self, end: End) {
        let mean_ns = self.options.clients as f64 * 1e9 / self.options.ops_per_second as f64;
        let mut next = self.time.now();
        loop {
            // Uniform between none and twice the mean: an even load without a beat.
            next += Duration::from_nanos((mean_ns * 2.0 * self.unit()) as u64);
            next = next.max(self.time.now());
            if end.is_by(next) {
                return;
            }
            self.time.sleep_until(next).await;
            if end.is_by(next) {
                return;
            }
            let request = self.choose();
            self.call(request).await;
        }
    }

    /// Between 0 and 1.
    fn unit(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    fn choose(&mut self) -> Request {
        let Mix { put, get, range, delete, compare_and_set } = self.options.mix;
        let serializable_percent = self.options.serializable_percent;
        let total = u64::from(put + get + range + delete + compare_and_set);
        let mut draw = self.below(total) as u32;
        let mut is = |weight: u32| {
            let hit = draw < weight;
            draw = draw.wrapping_sub(if hit { 0 } else { weight });
            hit
        };
        let kind = [put, get, range, delete].into_iter().position(&mut is);
        let number = self.below(self.options.keys);
        let serializable = self.below(100) < u64::from(serializable_percent);
        let flag = self.below(4) == 0;
        let value: Text = Arc::from(format!("c{}-{}", self.number, self.calls));
        let single = Keys { start: key(number), end: None };
        let span = Keys { start: key(number), end: Some(keys_end()) };
        let (revision, keys_only, count_only) = self.shape();
        let read = |keys, limit| Request::Range { keys, revision, limit, serializable, keys_only, count_only };
        match kind {
            Some(0) => Request::Put { key: key(number), value, previous: flag },
            Some(1) => read(single, 0),
            Some(2) => read(span, if flag { 2 } else { 0 }),
            Some(3) => Request::Delete { keys: if flag { span } else { single }, previous: flag },
            _ => Request::CompareAndSet { key: key(number), expected: self.guess(number), new: value },
        }
    }

    /// How a read is to be: as of what revision, with keys only, with their number only. Some ask for the past, and some
    /// for what may not be there yet.
    fn shape(&mut self) -> (i64, bool, bool) {
        let [when, past, what] = [(); 3].map(|()| self.shapes.next_u64());
        let revision = match when % 16 {
            0..3 => 1 + (past % self.revision as u64) as i64,
            3 => self.revision + 1 + (past % 4) as i64,
            _ => 0,
        };
        (revision, what % 8 == 0, what % 8 == 1)
    }

    /// What the key may hold: what somebody saw there last, or nothing. Often wrong, which is an answer too.
    fn guess(&mut self, number: u64) -> Option<Text> {
        let known = self.seen.lock().get(&key(number)).cloned();
        if self.below(8) == 0 { None } else { known }
    }

    fn learn(&mut self, request: &Request, answer: &Answer) {
        self.revision = self.revision.max(answer.revision);
        let mut seen = self.seen.lock();
        match (request, &answer.body) {
            (Request::Put { key, value, .. }, _) => drop(seen.insert(key.clone(), value.clone())),
            (Request::CompareAndSet { key, new, .. }, Body::CompareAndSet { succeeded: true, .. }) => {
                seen.insert(key.clone(), new.clone());
            }
            (_, Body::CompareAndSet { read: Some(kv), .. }) => drop(seen.insert(kv.key.clone(), kv.value.clone())),
            (Request::Range { revision: 0, keys_only: false, .. }, Body::Range { kvs, .. }) => {
                seen.extend(kvs.iter().map(|kv| (kv.key.clone(), kv.value.clone())));
            }
            _ => {}
        }
    }

    async fn call(&mut self, request: Request) {
        let within = Duration::from_millis(self.options.timeout_ms);
        let node = self.endpoints.current();
        if self.connection.is_none() {
            match Channel::connect(&*self.net, node, within).await {
                Ok(channel) => self.connection = Some(Kv::with_origin(channel, Channel::origin(node))),
                Err(_) => return self.give_up(),
            }
        }
        let kv = self.connection.as_mut().expect("just connected");
        self.calls += 1;
        let op = OpId::new(self.number, self.calls);
        let client = self.number;
        self.recorder.record(Event::Call { op, client, node, request: request.clone() });
        let result = madsim::time::timeout(within, send(kv, op, request.clone())).await;
        let silent = result.is_err();
        let outcome = match result {
            Ok(Ok(answer)) => Outcome::Ok(answer),
            Ok(Err(status)) => judge(&request, &status),
            Err(_) => unanswered(&request, NO_ANSWER.to_owned()),
        };
        let ok = match &outcome {
            Outcome::Ok(answer) => {
                self.learn(&request, answer);
                true
            }
            // It asked for what is not there yet.
            Outcome::Failed(why) => why.starts_with("OutOfRange"),
            Outcome::Unknown(_) => false,
        };
        self.recorder.record(Event::Return { op, outcome });
        if ok { self.failures = 0 } else { self.failed(silent) }
    }

    /// A node that says nothing, or fails twice in a row, is left for another one.
    fn failed(&mut self, silent: bool) {
        self.failures += 1;
        if silent || self.failures >= 2 {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.failures = 0;
        self.connection = None;
        let draw = self.rng.next_u64();
        self.endpoints.leave(draw);
    }
}

/// Reads have no effect, so whatever goes wrong with them is a failure and nothing worse.
fn unanswered(request: &Request, why: String) -> Outcome {
    if request.writes() { Outcome::Unknown(why) } else { Outcome::Failed(why) }
}

fn judge(request: &Request, status: &Status) -> Outcome {
    let text = format!("{:?}: {}", status.code(), status.message());
    let definite = match status.code() {
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition | Code::NotFound => true,
        Code::ResourceExhausted | Code::Unimplemented => true,
        Code::Unavailable => status.message() == "etcdserver: no leader",
        Code::Unknown => status.message() == "etcdserver: too many requests",
        _ => false,
    };
    if definite { Outcome::Failed(text) } else { unanswered(request, text) }
}

async fn send(kv: &mut Kv, op: OpId, request: Request) -> Result<Answer, Status> {
    match request {
        Request::Put { key, value, previous } => {
            let put =
                pb::PutRequest { key: bytes(&key), value: bytes(&value), prev_kv: previous, ..Default::default() };
            let response = kv.put(marked(op, put)).await?.into_inner();
            answer(response.header, Body::Put { previous: response.prev_kv.map(key_value) })
        }
        Request::Range { keys, revision, limit, serializable, keys_only, count_only } => {
            let range = pb::RangeRequest {
                key: bytes(&keys.start),
                range_end: keys.end.as_ref().map(bytes).unwrap_or_default(),
                revision,
                limit,
                serializable,
                keys_only,
                count_only,
                ..Default::default()
            };
            let response = kv.range(marked(op, range)).await?.into_inner();
            let kvs = response.kvs.into_iter().map(key_value).collect();
            answer(response.header, Body::Range { kvs, count: response.count, more: response.more })
        }
        Request::Delete { keys, previous } => {
            let delete = pb::DeleteRangeRequest {
                key: bytes(&keys.start),
                range_end: keys.end.as_ref().map(bytes).unwrap_or_default(),
                prev_kv: previous,
            };
            let response = kv.delete_range(marked(op, delete)).await?.into_inner();
            let previous = response.prev_kvs.into_iter().map(key_value).collect();
            answer(response.header, Body::Delete { deleted: response.deleted, previous })
        }
        Request::CompareAndSet { key, expected, new } => {
            let response = kv.txn(marked(op, compare_and_set(&key, expected.as_ref(), &new))).await?.into_inner();
            let read = response.responses.into_iter().find_map(|op| match op.response {
                Some(pb::response_op::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
                _ => None,
            });
            let body = Body::CompareAndSet { succeeded: response.succeeded, read: read.map(key_value) };
            answer(response.header, body)
        }
    }
}

fn compare_and_set(key: &Text, expected: Option<&Text>, new: &Text) -> pb::TxnRequest {
    use pb::{compare::*, request_op::Request as Op};
    let (target, union) = match expected {
        Some(value) => (CompareTarget::Value, TargetUnion::Value(bytes(value))),
        None => (CompareTarget::Version, TargetUnion::Version(0)),
    };
    let compare = pb::Compare {
        result: CompareResult::Equal as i32,
        target: target as i32,
        key: bytes(key),
        target_union: Some(union),
        ..Default::default()
    };
    let put = pb::PutRequest { key: bytes(key), value: bytes(new), ..Default::default() };
    let get = pb::RangeRequest { key: bytes(key), ..Default::default() };
    pb::TxnRequest {
        compare: vec![compare],
        success: vec![pb::RequestOp { request: Some(Op::RequestPut(put)) }],
        failure: vec![pb::RequestOp { request: Some(Op::RequestRange(get)) }],
    }
}

/// The request, with the operation's number as its trace id.
fn marked<T>(op: OpId, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let mut trace = MetadataValue::from(op.0);
    trace.set_sensitive(true); // no two are the same: HPACK need not remember it
    request.metadata_mut().insert(TRACE_KEY, trace);
    request
}

fn answer(header: Option<pb::ResponseHeader>, body: Body) -> Result<Answer, Status> {
    let header = header.ok_or_else(|| Status::internal("an answer without a header"))?;
    Ok(Answer { member: header.member_id, revision: header.revision, term: header.raft_term, body })
}

fn bytes(text: &Text) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

fn text(bytes: &[u8]) -> Text {
    Arc::from(String::from_utf8_lossy(bytes))
}

pub(super) fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: text(&kv.key),
        value: text(&kv.value),
        created: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
    }
}
