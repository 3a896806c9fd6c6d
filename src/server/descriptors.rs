//! The descriptors of `proto/`, for the JSON gateway and for metrics.

/// A gRPC method of `proto/`.
pub(super) struct GrpcMethod {
    pub(super) service: String,
    pub(super) name: String,
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`: the label of grpc-prometheus.
    pub(super) kind: &'static str,
}

pub(super) fn descriptors() -> prost_reflect::DescriptorPool {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    prost_reflect::DescriptorPool::decode(&bytes[..]).expect("the build compiled these descriptors")
}

pub(super) fn grpc_methods() -> Vec<GrpcMethod> {
    let pool = descriptors();
    let methods = pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    methods
        .map(|method| GrpcMethod {
            service: method.parent_service().full_name().to_owned(),
            name: method.name().to_owned(),
            kind: match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (true, false) => "client_stream",
                (false, true) => "server_stream",
                (true, true) => "bidi_stream",
            },
        })
        .collect()
}
