// Not needed to build an API server, and not published at this version.
module k8s.io/sample-apiserver

go 1.26.0
