# Builds the image that `make image` makes, for those who have a container engine: docker buildx build --platform
# linux/amd64,linux/arm64. The same scripts build the binary and list the files; docs/image.md explains both.
FROM --platform=$BUILDPLATFORM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ARG TARGETARCH
ARG SOURCE_DATE_EPOCH=0
# The caches keep the registry and compiled dependencies for the next build.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target,id=isthmus-$TARGETARCH \
    ARCHS=$TARGETARCH ./.ci/setup && PROFILE=dist ./deploy/image/build --tree /out $TARGETARCH

FROM scratch
ARG VERSION REVISION
COPY --from=build /out/ /
# Docker gives files that it copies to root.
COPY --from=build --chown=65532:65532 /out/home/nonroot /home/nonroot
COPY --from=build --chown=65532:65532 /out/var/run/etcd /var/run/etcd
LABEL org.opencontainers.image.title="Isthmus" \
      org.opencontainers.image.description="etcd-v3 store, publisher and KVStoreMesh of a Cilium Cluster Mesh in one binary" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
ENV PATH=/usr/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
WORKDIR /
EXPOSE 2379 9880 9881
ENTRYPOINT ["/usr/bin/clustermesh-apiserver"]
CMD ["serve"]
