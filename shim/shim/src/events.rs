//! Task events to containerd: in order, none lost while containerd restarts, memory bounded.
//!
//! Own publisher: the shim crate's never reconnects, and encodes through reflection, whose descriptors would stay in
//! memory (0.56 MB) for the shim's life.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::ttrpc::asynchronous::Client;
use containerd_shim_protos::ttrpc::proto::Request;
use containerd_shim_protos::ttrpc::{self, Code};
use tokio::sync::{Notify, mpsc};

use crate::log::Log;

/// Events kept while containerd is away; a pod's whole life is some tens.
const MAX_QUEUED: usize = 4096;
/// One attempt to hand an event over.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between attempts. There is no event that tells of a daemon's return.
const RETRY: Duration = Duration::from_millis(200);
/// How often containerd may refuse an event before it is given up: those behind it wait.
const MAX_REFUSALS: usize = 5;
/// How long an ending shim waits for its last events to be taken.
const FLUSH: Duration = Duration::from_secs(3);

/// A message with its topic and type, as containerd's own shim publishes it.
pub trait Event: Message {
    /// Topic, for example `/tasks/start`.
    const TOPIC: &'static str;
    /// The type's name.
    const TYPE: &'static str;
}

macro_rules! events {
    ($($message:ident $topic:literal;)*) => { $(impl Event for $message {
        const TOPIC: &'static str = $topic;
        const TYPE: &'static str = concat!("containerd.events.", stringify!($message));
    })* };
}
events! {
    TaskCreate "/tasks/create";
    TaskStart "/tasks/start";
    TaskExit "/tasks/exit";
    TaskDelete "/tasks/delete";
    TaskExecAdded "/tasks/exec-added";
    TaskExecStarted "/tasks/exec-started";
    TaskOOM "/tasks/oom";
    TaskPaused "/tasks/paused";
    TaskResumed "/tasks/resumed";
}

/// Now, as containerd writes times.
pub fn now() -> Timestamp {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        seconds: now.as_secs() as i64,
        nanos: now.subsec_nanos() as i32,
        ..Timestamp::default()
    }
}

/// The queue. Publishing never waits; one task sends in the order of publishing.
#[derive(Clone)]
pub struct Events {
    namespace: String,
    queue: mpsc::UnboundedSender<Vec<u8>>,
    pending: Arc<Pending>,
    log: Log,
}

#[derive(Default)]
struct Pending {
    count: AtomicUsize,
    none: Notify,
}

impl Events {
    /// Starts the sender.
    pub fn new(address: &str, namespace: &str, log: Log) -> Self {
        let (queue, taken) = mpsc::unbounded_channel();
        let pending = Arc::new(Pending::default());
        let address = format!("unix://{}", address.trim_start_matches("unix://"));
        tokio::spawn(send_all(address, taken, pending.clone(), log.clone()));
        Self {
            namespace: namespace.into(),
            queue,
            pending,
            log,
        }
    }

    /// Queues an event.
    pub fn publish<E: Event>(&self, event: &E) {
        let encoded = event.write_to_bytes().and_then(|value| {
            let any = Any {
                type_url: E::TYPE.into(),
                value,
                ..Any::default()
            };
            let envelope = Envelope {
                timestamp: Some(now()).into(),
                namespace: self.namespace.clone(),
                topic: E::TOPIC.into(),
                event: Some(any).into(),
                ..Envelope::default()
            };
            ForwardRequest {
                envelope: Some(envelope).into(),
                ..ForwardRequest::default()
            }
            .write_to_bytes()
        });
        match encoded {
            Ok(_) if self.pending.count.load(Ordering::Relaxed) >= MAX_QUEUED => {
                self.log.error(&format!(
                    "event {} dropped: {MAX_QUEUED} wait for containerd",
                    E::TOPIC
                ));
            }
            Ok(bytes) => {
                self.pending.count.fetch_add(1, Ordering::Relaxed);
                let _ = self.queue.send(bytes);
            }
            Err(e) => self.log.error(&format!("event {}: {e}", E::TOPIC)),
        }
    }

    /// Waits until everything published has been taken, for a bounded time.
    pub async fn flush(&self) {
        let taken = async {
            while self.pending.count.load(Ordering::Relaxed) > 0 {
                self.pending.none.notified().await;
            }
        };
        let _ = tokio::time::timeout(FLUSH, taken).await;
    }
}

async fn send_all(
    address: String,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    pending: Arc<Pending>,
    log: Log,
) {
    let mut client: Option<Client> = None;
    while let Some(event) = queue.recv().await {
        let (mut failed, mut refused) = (0, 0);
        while let Err(failure) = forward(&mut client, &address, event.clone()).await {
            failed += 1;
            match failure {
                Failure::Unheard(e) => {
                    client = None;
                    if failed == 1 {
                        log.info(&format!("events wait for containerd: {e}"));
                    }
                }
                Failure::Refused(e) => {
                    refused += 1;
                    if refused == MAX_REFUSALS {
                        log.error(&format!("event dropped, for containerd refuses it: {e}"));
                        break;
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
        pending.count.fetch_sub(1, Ordering::Relaxed);
        pending.none.notify_one();
    }
}

/// Why an event was not taken.
enum Failure {
    /// containerd is not there, or does not answer: it will be.
    Unheard(String),
    /// It has looked at the event.
    Refused(String),
}

impl From<ttrpc::Error> for Failure {
    fn from(e: ttrpc::Error) -> Self {
        let text = e.to_string();
        match e {
            ttrpc::Error::RpcStatus(status)
                if ![Code::UNAVAILABLE, Code::DEADLINE_EXCEEDED].contains(&status.code()) =>
            {
                Self::Refused(text)
            }
            _ => Self::Unheard(text),
        }
    }
}

async fn forward(
    client: &mut Option<Client>,
    address: &str,
    payload: Vec<u8>,
) -> Result<(), Failure> {
    let connected = match client {
        Some(c) => c,
        None => client.insert(Client::connect(address).await?),
    };
    let request = Request {
        service: "containerd.services.events.ttrpc.v1.Events".into(),
        method: "Forward".into(),
        timeout_nano: TIMEOUT.as_nanos() as i64,
        payload,
        ..Request::default()
    };
    match tokio::time::timeout(TIMEOUT, connected.request(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(e.into()),
        Err(_) => Err(Failure::Unheard(format!("no answer within {TIMEOUT:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async;
    use containerd_shim_protos::ttrpc::r#async::transport::Listener;
    use containerd_shim_protos::ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    /// A containerd that refuses one kind of event, and notes what it was asked.
    #[derive(Clone, Default)]
    struct Refusing(Arc<Mutex<Vec<String>>>);

    #[async_trait]
    impl shim_async::Events for Refusing {
        async fn forward(&self, _: &TtrpcContext, asked: ForwardRequest) -> ttrpc::Result<Empty> {
            let topic = asked.envelope.topic.clone();
            self.0.lock().unwrap().push(topic.clone());
            match topic.as_str() {
                TaskStart::TOPIC => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                    Code::INVALID_ARGUMENT,
                    "no such namespace",
                ))),
                _ => Ok(Empty::default()),
            }
        }
    }

    #[test]
    fn an_event_that_is_refused_for_good_does_not_hold_up_the_others() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("containerd.ttrpc");
        let asked = Refusing::default();
        runtime.block_on(async {
            let listener = UnixListener::bind(&socket).unwrap();
            listener.set_nonblocking(true).unwrap();
            let service = shim_async::create_events(Arc::new(asked.clone()));
            let mut server = Server::new()
                .add_listener(Listener::try_from(listener).unwrap())
                .register_service(service);
            server.start().await.unwrap();
            let log = Log::open(directory.path(), false);
            let events = Events::new(socket.to_str().unwrap(), "test", log);
            events.publish(&TaskStart::default());
            events.publish(&TaskExit::default());
            while events.pending.count.load(Ordering::Relaxed) > 0 {
                events.pending.none.notified().await;
            }
        });
        let mut topics = vec![TaskStart::TOPIC; MAX_REFUSALS];
        topics.push(TaskExit::TOPIC);
        assert_eq!(*asked.0.lock().unwrap(), topics);
    }
}
