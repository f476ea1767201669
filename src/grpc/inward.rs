//! gRPC calls that this process makes to itself, so that what is decided for a call is decided in one place.

use std::convert::Infallible;

use axum::{body::Body, extract::Request, response::Response};
use bytes::{Bytes, BytesMut};
use http::{Extensions, HeaderMap, HeaderValue, header};
use http_body_util::BodyExt as _;
use tonic::Status;
use tower::{Service, ServiceExt as _};

use super::status;

/// Bytes before a message: whether it is compressed, and its length.
pub const FRAME_HEAD: usize = 5;

/// One call, as if it had come over the network.
pub struct Inward<'a> {
    /// The path of the RPC.
    pub rpc: &'a str,
    pub message: &'a [u8],
    pub headers: HeaderMap,
    /// What the listener would say of it.
    pub extensions: Extensions,
}

impl Inward<'_> {
    /// Makes the call; the encoded answer.
    pub async fn send<S>(self, service: S) -> Result<Bytes, Status>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let mut request = Request::new(Body::from(frame(self.message)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.rpc.parse().map_err(|_| status::unknown(self.rpc))?;
        *request.headers_mut() = self.headers;
        let headers = request.headers_mut();
        let grpc = HeaderValue::from_static("application/grpc");
        headers.insert(header::CONTENT_TYPE, grpc);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        *request.extensions_mut() = self.extensions;
        let response = match service.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (head, body) = response.into_parts();
        if let Some(status) = status::of_head(&head.headers) {
            return Err(status);
        }
        let body = body.collect().await;
        let body = body.map_err(|error| status::malformed(&error.to_string()))?;
        if let Some(status) = body.trailers().and_then(status::of_head) {
            return Err(status);
        }
        let bytes = body.to_bytes();
        Ok(bytes.slice(FRAME_HEAD.min(bytes.len())..))
    }
}

fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + message.len());
    frame.extend_from_slice(&[0]);
    // The limit on messages is far below 4 GiB.
    frame.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    frame.extend_from_slice(message);
    frame.freeze()
}
