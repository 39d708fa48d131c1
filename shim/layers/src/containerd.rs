//! containerd's gRPC API: the four messages each way that matter, with the fields that matter. The numbers are those of
//! containerd's `api/services/{images,containers,content}/v1/*.proto` and `api/types/descriptor.proto`, which promise to
//! keep them.

use std::collections::HashMap;
use std::error::Error;

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use slipway_image::Descriptor;
use slipway_module::Digest;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::{ContainerImage, ContentStore, ImageStore, LayersError};

/// How much containerd may send ahead, in bytes: HTTP/2's 64 KiB cost a message back for each piece of a layer, and
/// containerd sends pieces of 1 MiB.
const WINDOW_BYTES: u32 = 2 << 20;

/// The key of what CRI adds to a container's record.
const CRI_EXTENSION: &str = "io.cri-containerd.container.metadata";

/// A connection to containerd.
#[derive(Debug)]
pub struct Containerd {
    grpc: Grpc<Channel>,
    namespace: String,
    header: MetadataValue<Ascii>,
}

impl Containerd {
    /// Connects to the gRPC socket `address` (a path, or `unix://` and a path), to see the images and containers of
    /// `namespace`: `k8s.io` for a kubelet's.
    ///
    /// # Errors
    /// [`LayersError::Connect`].
    pub async fn connect(address: &str, namespace: &str) -> Result<Containerd, LayersError> {
        let refused = |e: &dyn Error| LayersError::Connect {
            address: address.to_owned(),
            reason: root_cause(e),
        };
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let channel = Endpoint::from_shared(format!("unix://{path}"))
            .map_err(|e| refused(&e))?
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect()
            .await
            .map_err(|e| refused(&e))?;
        let header = namespace.parse().map_err(|e| refused(&e))?;
        Ok(Containerd {
            grpc: Grpc::new(channel),
            namespace: namespace.to_owned(),
            header,
        })
    }

    /// What containerd noted of the image that the container was created from.
    ///
    /// # Errors
    /// [`LayersError::NotFound`], [`LayersError::NoImage`], [`LayersError::Call`].
    pub async fn container_image(&mut self, id: &str) -> Result<ContainerImage, LayersError> {
        let call = "/containerd.services.containers.v1.Containers/Get";
        let response: GetContainerResponse = self
            .unary(call, GetContainerRequest { id: id.to_owned() })
            .await
            .map_err(|status| self.problem("container", id, &status))?;
        let record = response.container.unwrap_or_default();
        if record.image.is_empty() {
            return Err(LayersError::NoImage(id.to_owned()));
        }
        let cri = record.extensions.get(CRI_EXTENSION);
        let cri = cri.map(|extension| extension.value.as_ref());
        Ok(ContainerImage::new(record.image, cri))
    }

    async fn unary<Q, R>(&mut self, call: &'static str, request: Q) -> Result<R, Status>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        self.ready().await?;
        let request = self.request(request);
        Ok(self
            .grpc
            .unary(
                request,
                PathAndQuery::from_static(call),
                ProstCodec::default(),
            )
            .await?
            .into_inner())
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.grpc
            .ready()
            .await
            .map_err(|e| Status::unavailable(root_cause(&e)))
    }

    fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.header.clone());
        request
    }

    fn problem(&self, what: &'static str, name: &str, status: &Status) -> LayersError {
        match status.code() {
            Code::NotFound => LayersError::NotFound {
                what,
                name: name.to_owned(),
                namespace: self.namespace.clone(),
            },
            _ => failed(format!("get {what} {name:?}"), status),
        }
    }
}

impl ImageStore for Containerd {
    async fn image(&mut self, name: &str) -> Result<Descriptor, LayersError> {
        let call = "/containerd.services.images.v1.Images/Get";
        let response: GetImageResponse = self
            .unary(
                call,
                GetImageRequest {
                    name: name.to_owned(),
                },
            )
            .await
            .map_err(|status| self.problem("image", name, &status))?;
        let target = response
            .image
            .and_then(|image| image.target)
            .unwrap_or_default();
        let invalid = |message| LayersError::Call {
            call: format!("describe image {name:?}"),
            code: "Internal".to_owned(),
            message,
        };
        let size = target
            .size
            .try_into()
            .map_err(|_| invalid(format!("its size is {}", target.size)))?;
        Ok(Descriptor::new(
            target.media_type,
            Digest::from_oci(&target.digest).map_err(|e| invalid(e.to_string()))?,
            size,
        ))
    }
}

impl ContentStore for Containerd {
    async fn read(
        &mut self,
        digest: Digest,
        mut sink: impl FnMut(&[u8]) -> Result<(), LayersError>,
    ) -> Result<(), LayersError> {
        let problem = |status: Status| match status.code() {
            Code::NotFound => LayersError::Missing(digest),
            _ => failed(format!("read blob {digest:?}"), &status),
        };
        self.ready().await.map_err(problem)?;
        let request = self.request(ReadContentRequest {
            digest: format!("sha256:{digest}"),
        });
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
        let mut pieces = self
            .grpc
            .server_streaming(
                request,
                path,
                ProstCodec::<_, ReadContentResponse>::default(),
            )
            .await
            .map_err(problem)?
            .into_inner();
        while let Some(piece) = pieces.message().await.map_err(problem)? {
            sink(&piece.data)?;
        }
        Ok(())
    }
}

fn failed(call: String, status: &Status) -> LayersError {
    LayersError::Call {
        call,
        code: format!("{:?}", status.code()),
        message: status.message().to_owned(),
    }
}

/// The system's own text, which tonic wraps in several that say "transport error".
fn root_cause(mut error: &dyn Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[derive(Clone, PartialEq, Message)]
struct GetImageRequest {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct GetImageResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageRecord {
    #[prost(message, optional, tag = "3")]
    target: Option<Target>,
}

#[derive(Clone, PartialEq, Message)]
struct Target {
    #[prost(string, tag = "1")]
    media_type: String,
    #[prost(string, tag = "2")]
    digest: String,
    #[prost(int64, tag = "3")]
    size: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GetContainerRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct GetContainerResponse {
    #[prost(message, optional, tag = "1")]
    container: Option<ContainerRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerRecord {
    #[prost(string, tag = "3")]
    image: String,
    #[prost(map = "string, message", tag = "10")]
    extensions: HashMap<String, Extension>,
}

#[derive(Clone, PartialEq, Message)]
struct Extension {
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct ReadContentRequest {
    #[prost(string, tag = "1")]
    digest: String,
}

#[derive(Clone, PartialEq, Message)]
struct ReadContentResponse {
    #[prost(bytes = "bytes", tag = "2")]
    data: Bytes,
}
