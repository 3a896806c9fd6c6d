# The build stage has protoc and a C compiler. The final image has only the C library, and runs as user 65532.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends protobuf-compiler libprotobuf-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist && strip target/dist/clustermesh-apiserver \
 && mkdir -p /out/usr/bin /out/var/run/etcd /out/var/run/cilium \
 && cp target/dist/clustermesh-apiserver /out/usr/bin/ \
 # A binary called `etcd` runs the subcommand `etcd`: the sidecar of Cilium's chart starts /usr/bin/etcd.
 && ln -s clustermesh-apiserver /out/usr/bin/etcd

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/usr/bin /usr/bin
COPY --from=build --chown=65532:65532 /out/var/run /var/run
USER 65532:65532
EXPOSE 2379 9880
ENTRYPOINT ["/usr/bin/clustermesh-apiserver"]
CMD ["serve"]
