# Build: needs protoc and a C compiler. Run: nothing but the C library, as nobody in particular.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends protobuf-compiler libprotobuf-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist && strip target/dist/clustermesh-apiserver \
 && mkdir -p /out/usr/bin /out/var/run/etcd /out/var/run/cilium \
 && cp target/dist/clustermesh-apiserver /out/usr/bin/ \
 # Called `etcd`, the binary is that server: the chart's sidecar runs /usr/bin/etcd.
 && ln -s clustermesh-apiserver /out/usr/bin/etcd

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/usr/bin /usr/bin
COPY --from=build --chown=65532:65532 /out/var/run /var/run
USER 65532:65532
EXPOSE 2379 9880
ENTRYPOINT ["/usr/bin/clustermesh-apiserver"]
CMD ["serve"]
