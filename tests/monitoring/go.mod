// Runs the alerts and dashboards of etcd's own mixin against a store of Isthmus.
module isthmus/monitoring

go 1.26

require github.com/google/go-jsonnet v0.21.0
