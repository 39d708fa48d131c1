//! Events to containerd, on one ttrpc connection that stays open.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::ttrpc::proto::Request;

use crate::server::{REQUEST, frame};
use crate::task::now;
use crate::{Error, Result, io};

/// The environment variable in which containerd says where it takes events.
const ADDRESS: &str = "TTRPC_ADDRESS";

/// Publishes in order, and does not wait for answers.
pub struct Publisher {
    stream: UnixStream,
    /// containerd's namespace.
    namespace: String,
    /// Odd and growing, as ttrpc wants it of clients.
    next_stream: u32,
}

impl Publisher {
    /// Connects to the containerd that started this shim.
    pub fn connect(namespace: String) -> Result<Self> {
        let address =
            std::env::var(ADDRESS).map_err(|e| Error::Invalid(format!("{ADDRESS}: {e}")))?;
        let stream = UnixStream::connect(&address).map_err(io(address))?;
        Ok(Self {
            stream,
            namespace,
            next_stream: 1,
        })
    }

    /// Sends one event. `type_name` is a literal because asking rust-protobuf for it builds the descriptors of
    /// every message of its file: half a megabyte of heap, kept for good.
    pub fn publish(&mut self, topic: &str, type_name: &str, event: &impl Message) -> Result<()> {
        let event = Any {
            type_url: type_name.into(),
            value: event.write_to_bytes()?,
            ..Default::default()
        };
        let envelope = Envelope {
            timestamp: Some(now()).into(),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: Some(event).into(),
            ..Default::default()
        };
        let request = Request {
            service: "containerd.services.events.ttrpc.v1.Events".into(),
            method: "Forward".into(),
            payload: ForwardRequest {
                envelope: Some(envelope).into(),
                ..Default::default()
            }
            .write_to_bytes()?,
            ..Default::default()
        };
        let frame = frame(REQUEST, self.next_stream, &request)?;
        self.next_stream += 2;
        // With containerd gone there is nobody to tell; tasks go on without it.
        let _ = self.stream.write_all(&frame);
        Ok(())
    }

    /// Reads containerd's answers away; `false` when it is gone.
    pub fn drain(&mut self) -> bool {
        self.stream
            .read(&mut [0; 1024])
            .is_ok_and(|length| length > 0)
    }
}

impl AsFd for Publisher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
