//! The hub against a plain list: whatever the order of writes, creations and deliveries, a watch gets exactly the
//! slice of history that it asked for.
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::types::LeaseId;

fn put(store: &mut Store, keys: &[u8]) -> Vec<Record> {
    let mut writer = store.write();
    for key in keys {
        writer.put(&[b'a' + key % 4], &[0; 600_000], LeaseId(0));
    }
    writer.finish()
}

fn create(range: KeyRange, start: i64) -> Request {
    let start = Revision(start);
    Request::Create(Create { id: WatchId(0), range, start, filter: Filter::default(), previous: true, progress: false })
}

fn prefix() -> KeyRange {
    KeyRange { start: Bytes::from_static(b"b"), end: RangeEnd::Before(Bytes::from_static(b"d")) }
}

/// Collects a stream's notices and returns credit for them late.
#[derive(Default)]
struct Client {
    events: BTreeMap<WatchId, Vec<(i64, crate::mvcc::Key)>>,
    unreported: usize,
    progress: Vec<Revision>,
}

impl Client {
    fn take(&mut self, out: &mut Vec<Output>) {
        for output in out.drain(..) {
            let Output::Notify(notice) = output else { panic!("{output:?}") };
            match notice.what {
                What::Events(events) => {
                    let seen = self.events.entry(notice.watch).or_default();
                    let first = events[0].record.modified().0;
                    assert!(seen.last().is_none_or(|last| last.0 < first), "a revision was split or came twice");
                    for event in events {
                        assert!(event.record.modified() <= notice.revision);
                        self.unreported += event.bytes();
                        seen.push((event.record.modified().0, event.record.key().into()));
                    }
                }
                What::Progress => self.progress.push(notice.revision),
                What::Created => {
                    self.events.entry(notice.watch).or_default();
                }
                What::Canceled(reason) => panic!("{reason:?}"),
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<u8>),
    Create(u8),
    Report,
    CatchUp,
    Progress,
}

proptest! {
    #[test]
    fn every_watch_gets_its_slice_of_history_once(steps in proptest::collection::vec(prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 1..4).prop_map(Step::Put),
        1 => any::<u8>().prop_map(Step::Create),
        2 => Just(Step::Report),
        2 => Just(Step::CatchUp),
        1 => Just(Step::Progress),
    ], 1..80)) {
        let (mut store, mut hub, mut client, mut out) = (Store::default(), Hub::default(), Client::default(), Vec::new());
        let (stream, mut starts) = (StreamId(1), Vec::new());
        for step in steps {
            match step {
                Step::Put(keys) => {
                    let changes = put(&mut store, &keys);
                    hub.applied(&changes, &store, &mut out);
                }
                Step::Create(n) => {
                    let start = i64::from(n) % (store.revision().0 + 4);
                    starts.push(if start == 0 { store.revision().0 + 1 } else { start });
                    hub.handle(stream, create(prefix(), start), &store, &mut out);
                }
                Step::Report => {
                    let bytes = std::mem::take(&mut client.unreported);
                    hub.handle(stream, Request::Delivered(bytes), &store, &mut out);
                }
                Step::CatchUp => hub.catch_up(&store, &mut out),
                Step::Progress => hub.handle(stream, Request::Progress, &store, &mut out),
            }
            hub.check();
            client.take(&mut out);
        }
        while hub.has_work() || client.unreported > 0 {
            hub.catch_up(&store, &mut out);
            client.take(&mut out);
            let bytes = std::mem::take(&mut client.unreported);
            hub.handle(stream, Request::Delivered(bytes), &store, &mut out);
        }
        for (n, start) in starts.iter().enumerate() {
            let expected: Vec<_> = store
                .history(Revision(*start))
                .filter(|record| prefix().contains(record.key()))
                .map(|record| (record.modified().0, record.key().into()))
                .collect();
            prop_assert_eq!(client.events.get(&WatchId(n as i64)), Some(&expected), "watch {} from {}", n, start);
        }
    }
}

#[test]
fn a_watch_on_compacted_history_is_told_so() {
    let (mut store, mut hub, mut out) = (Store::default(), Hub::default(), Vec::new());
    for key in 0..5 {
        put(&mut store, &[key]);
    }
    store.compact(Revision(4)).unwrap();
    hub.handle(StreamId(1), create(prefix(), 3), &store, &mut out);
    hub.handle(StreamId(1), create(prefix(), 4), &store, &mut out);
    hub.catch_up(&store, &mut out);
    let canceled = out.iter().filter_map(|output| match output {
        Output::Notify(Notice { watch, what: What::Canceled(reason), .. }) => Some((*watch, *reason)),
        _ => None,
    });
    assert_eq!(canceled.collect::<Vec<_>>(), [(WatchId(0), Canceled::Compacted(Revision(4)))]);
    hub.check();
}

#[test]
fn senseless_requests_are_refused_in_etcds_words() {
    #[track_caller]
    fn check(request: Request, reason: &'static str) {
        let (store, mut hub, mut out) = (Store::default(), Hub::default(), Vec::new());
        let Request::Create(first) = create(prefix(), 0) else { unreachable!() };
        hub.handle(StreamId(1), Request::Create(Create { id: WatchId(5), ..first }), &store, &mut out);
        hub.handle(StreamId(1), request, &store, &mut out);
        let Some(Output::Notify(notice)) = out.last() else { panic!() };
        assert_eq!((notice.watch, &notice.what), (WatchId(-1), &What::Canceled(Canceled::Refused(reason))));
    }
    let Request::Create(plain) = create(prefix(), 0) else { unreachable!() };
    let empty = KeyRange { start: Bytes::from_static(b"d"), end: RangeEnd::Before(Bytes::from_static(b"b")) };
    check(create(prefix(), -1), "etcdserver: mvcc: required revision has been compacted");
    check(create(empty, 0), "mvcc: watcher range is empty");
    check(Request::Create(Create { id: WatchId(5), ..plain }), "mvcc: duplicate watch ID provided on the WatchStream");
}
