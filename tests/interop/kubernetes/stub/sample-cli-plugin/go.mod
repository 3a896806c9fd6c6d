// Not needed to build an API server, and not published at this version.
module k8s.io/sample-cli-plugin

go 1.26.0
