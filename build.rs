//! Compiles the protobuf files of `proto/` for `src/pb.rs`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = ["kv", "auth", "rpc", "lock", "election", "endpointslice"].map(|p| format!("proto/{p}.proto"));
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        // The JSON gateway translates by these descriptors.
        .file_descriptor_set_path(out.join("descriptors.bin"))
        // Clients use the etcd-client crate.
        .build_client(false)
        .codec_path("crate::pb::Codec")
        .bytes(".")
        .btree_map(".endpointslice")
        .extern_path(".mvccpb.KeyValue", "crate::pb::KeyValue")
        .extern_path(".etcdserverpb.WatchResponse", "crate::pb::WatchResponse")
        .compile_protos(&protos, &["proto".to_owned()])?;
    Ok(())
}
