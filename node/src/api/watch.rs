//! etcdserverpb.Watch: many watches on one stream.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use detcd_core::{
    limits::{WATCH_NOTICES_MAX, WATCH_REQUESTS_AT_ONCE},
    types::{Revision, StreamId, WatchId},
    watch::{Canceled, Create, Event, Filter, Notice, Request as Ask, What, range_of_watch},
};
use futures::Stream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Api, convert::key_value};
use crate::{
    inbox::Item,
    notices::NoticeQueue,
    proto::{
        etcdserverpb::{
            WatchCreateRequest, WatchRequest, WatchResponse, watch_create_request::FilterType,
            watch_request::RequestUnion, watch_server::Watch,
        },
        mvccpb,
    },
};

/// Bytes passed on before the hub is told that there is room again.
const REPORT_BYTES: usize = 256 << 10;

#[async_trait]
impl Watch for Api {
    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<WatchStream>, Status> {
        self.check_leader(request.metadata())?;
        let (id, notices) = (self.handle.new_stream(), Arc::new(NoticeQueue::default()));
        self.handle.push(Item::OpenWatches { stream: id, notices: notices.clone() });
        let requests = Some(request.into_inner());
        Ok(Response::new(WatchStream { api: self.clone(), id, requests, notices, delivered: 0 }))
    }
}

/// Both directions in one: polling for what goes out takes in what came.
pub struct WatchStream {
    api: Api,
    id: StreamId,
    /// `None` once the client has nothing more to ask. Its watches go on, as in etcd.
    requests: Option<Streaming<WatchRequest>>,
    notices: Arc<NoticeQueue>,
    /// Bytes of events passed on and not reported yet.
    delivered: usize,
}

impl WatchStream {
    fn ask(&self, request: Ask) {
        self.api.handle.push(Item::Watch { stream: self.id, request });
    }

    /// Takes in what the client asks, for as long as it also takes what it is told. The error that ended the stream.
    fn take_in(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        for _ in 0..WATCH_REQUESTS_AT_ONCE {
            let Some(requests) = self.requests.as_mut().filter(|_| self.notices.waiting() < WATCH_NOTICES_MAX) else {
                return Ok(());
            };
            match Pin::new(requests).poll_next(cx) {
                Poll::Ready(Some(request)) => self.pass_on(request?),
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => return Ok(()),
            }
        }
        // There may be more, once these are seen to.
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn pass_on(&self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.ask(Ask::Create(convert_create(create))),
            Some(RequestUnion::CancelRequest(cancel)) => self.ask(Ask::Cancel(WatchId(cancel.watch_id))),
            Some(RequestUnion::ProgressRequest(_)) => self.ask(Ask::Progress),
            None => {}
        }
    }

    fn send_out(&mut self, notice: Notice) -> WatchResponse {
        let mut response = WatchResponse {
            header: self.api.header(notice.revision, self.api.handle.status().term),
            watch_id: notice.watch.0,
            ..Default::default()
        };
        match notice.what {
            What::Created => response.created = true,
            What::Progress => {}
            What::Canceled(reason) => {
                response.canceled = true;
                match reason {
                    Canceled::Asked => {}
                    Canceled::Compacted(revision) => response.compact_revision = revision.0,
                    Canceled::Refused(reason) => {
                        response.created = true;
                        response.cancel_reason = reason.to_owned();
                    }
                }
            }
            What::Events(events) => {
                self.delivered += events.iter().map(Event::bytes).sum::<usize>();
                response.events = events.iter().map(convert_event).collect();
            }
        }
        response
    }
}

impl Stream for WatchStream {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Err(status) = self.take_in(cx) {
            return Poll::Ready(Some(Err(status)));
        }
        if self.delivered >= REPORT_BYTES {
            let delivered = std::mem::take(&mut self.delivered);
            self.ask(Ask::Delivered(delivered));
        }
        match self.notices.poll_next(cx) {
            Poll::Ready(notice) => Poll::Ready(Some(Ok(self.send_out(notice)))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.ask(Ask::Close);
    }
}

fn convert_create(create: WatchCreateRequest) -> Create {
    let filter = Filter {
        no_puts: create.filters().any(|filter| filter == FilterType::Noput),
        no_deletes: create.filters().any(|filter| filter == FilterType::Nodelete),
    };
    Create {
        id: WatchId(create.watch_id),
        range: range_of_watch(create.key, create.range_end),
        start: Revision(create.start_revision),
        filter,
        previous: create.prev_kv,
        progress: create.progress_notify,
    }
}

fn convert_event(event: &Event) -> mvccpb::Event {
    let prev_kv = event.previous.as_ref().map(key_value);
    let record = &event.record;
    if !record.is_tombstone() {
        return mvccpb::Event { r#type: mvccpb::event::EventType::Put as i32, kv: Some(key_value(record)), prev_kv };
    }
    let kv = mvccpb::KeyValue {
        key: Bytes::copy_from_slice(record.key()),
        mod_revision: record.modified().0,
        ..Default::default()
    };
    mvccpb::Event { r#type: mvccpb::event::EventType::Delete as i32, kv: Some(kv), prev_kv }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body_util::Full;
    use prost::Message;
    use tonic::codec::Codec;

    use super::*;
    use crate::{
        api::{Limits, LongReads},
        proto::etcdserverpb::WatchProgressRequest,
        testing,
    };

    /// A stream whose client has sent so many requests and has nothing more to ask.
    fn asked(requests: usize) -> WatchStream {
        let request_union = Some(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        let message = WatchRequest { request_union }.encode_to_vec();
        let frame = [&[0], &(message.len() as u32).to_be_bytes()[..], &message].concat();
        let decoder = tonic_prost::ProstCodec::<WatchResponse, WatchRequest>::default().decoder();
        let requests = Streaming::new_request(decoder, Full::new(Bytes::from(frame.repeat(requests))), None, None);
        let (limits, long_reads) = (Limits { txn_ops_max: 1 }, LongReads::new(1));
        let (handle, metrics, host) = (testing::handle(), Arc::default(), testing::host());
        let api = Api { handle, limits, metrics, host, long_reads };
        WatchStream { api, id: StreamId(1), requests: Some(requests), notices: Arc::default(), delivered: 0 }
    }

    /// What comes out, and how many requests were passed on for it.
    fn poll(stream: &mut WatchStream) -> (Poll<Option<bool>>, usize) {
        let mut cx = Context::from_waker(Waker::noop());
        let polled = Pin::new(&mut *stream).poll_next(&mut cx).map(|next| next.map(|next| next.is_ok()));
        let mut items = Vec::new();
        stream.api.handle.drain(&mut cx, &mut items);
        (polled, items.len())
    }

    #[tokio::test]
    async fn a_stream_goes_on_when_its_client_has_nothing_more_to_ask() {
        let mut stream = asked(1);
        assert_eq!([poll(&mut stream), poll(&mut stream)], [(Poll::Pending, 1), (Poll::Pending, 0)]);
        assert!(stream.requests.is_none());
        stream.notices.push(Notice {
            stream: StreamId(1),
            watch: WatchId(0),
            revision: Revision(1),
            what: What::Progress,
        });
        assert_eq!(poll(&mut stream), (Poll::Ready(Some(true)), 0));
    }

    #[tokio::test]
    async fn requests_wait_while_too_many_answers_do() {
        let mut stream = asked(2 * WATCH_REQUESTS_AT_ONCE);
        assert_eq!(poll(&mut stream), (Poll::Pending, WATCH_REQUESTS_AT_ONCE));
        for _ in 0..=WATCH_NOTICES_MAX {
            let (stream_id, watch, revision) = (StreamId(1), WatchId(0), Revision(1));
            stream.notices.push(Notice { stream: stream_id, watch, revision, what: What::Progress });
        }
        for _ in 0..2 {
            assert_eq!(poll(&mut stream), (Poll::Ready(Some(true)), 0));
        }
        assert_eq!(poll(&mut stream), (Poll::Ready(Some(true)), WATCH_REQUESTS_AT_ONCE));
    }
}
