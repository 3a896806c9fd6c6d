package main

import (
	"fmt"
	"strings"
)

// words are the prefixes for which a cluster writes canaries.
var words = []string{"nodes", "identities", "ip", "services", "serviceexports", "endpointslices"}

const (
	identityPrefix = "cilium/state/identities/v1/id/"
	ipPrefix       = "cilium/state/ip/v1/default/"
)

func nodeKey(cluster string, n int) string {
	return fmt.Sprintf("cilium/state/nodes/v1/%s/%s-worker-%d", cluster, cluster, n)
}

func nodeValue(cluster string, id, n, version int) string {
	return fmt.Sprintf(`{"Name":"%s-worker-%d","Cluster":"%s","IPAddresses":[{"Type":"InternalIP","IP":"172.%d.%d.%d"},{"Type":"CiliumInternalIP","IP":"10.%d.%d.1"}],`+
		`"IPv4AllocCIDR":{"IP":"10.%d.%d.0","Mask":"////AA=="},"IPv6AllocCIDR":null,"IPv4HealthIP":"10.%d.%d.2","IPv4IngressIP":"10.%d.%d.3","ClusterID":%d,"Source":"custom-resource",`+
		`"Labels":{"kubernetes.io/arch":"amd64","kubernetes.io/hostname":"%s-worker-%d","kubernetes.io/os":"linux","topology.kubernetes.io/zone":"zone-%d"},"Annotations":{"version":"%d"},"NodeIdentity":6,"WireguardPubKey":"","BootID":"6f1b%08x-7a5e-4c33-9c43-0d15%08x"}`,
		cluster, n, cluster, 16+id%16, id%250, n, id%250, n, id%250, n, id%250, n, id%250, n, id, cluster, n, n%3, version, n, id)
}

func identityKey(id, n int) string { return fmt.Sprint(identityPrefix, id<<16+n+256) }

func identityValue(cluster string, n, version int) string {
	return fmt.Sprintf("k8s:app=app-%d;k8s:app.kubernetes.io/instance=release-%d;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=namespace-%d;"+
		"k8s:io.cilium.k8s.policy.cluster=%s;k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=namespace-%d;k8s:version=%d;", n, n, n%20, cluster, n%20, version)
}

func ipKey(id, n int) string { return fmt.Sprintf("%s10.%d.%d.%d", ipPrefix, id%250, n/250, n%250+1) }

func ipValue(cluster string, id, n, version int) string {
	return fmt.Sprintf(`{"IP":"10.%d.%d.%d","Mask":null,"HostIP":"172.%d.%d.%d","ID":%d,"Key":0,"Metadata":"cilium-global:%s:%s-worker-%d:%d","K8sNamespace":"namespace-%d","K8sPodName":"app-%d-7c9d8f6b5-v%d","K8sServiceAccount":"default"}`,
		id%250, n/250, n%250+1, 16+id%16, id%250, n%*nodesPer, id<<16+n%*identitiesPer+256, cluster, cluster, n%*nodesPer, n, n%20, n%*identitiesPer, version)
}

// configOf is the configuration of a cluster in its own store.
func configOf(id, most int) string {
	return fmt.Sprintf(`{"id":%d,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":%d,"serviceExportsEnabled":false}}`, id, most)
}

// first has the initial keys of a cluster, in an order in which a publisher could write them.
func first(cluster string, id, ips int) (keys, values []string) {
	add := func(key, value string) { keys, values = append(keys, key), append(values, value) }
	for n := range *nodesPer {
		add(nodeKey(cluster, n), nodeValue(cluster, id, n, 0))
	}
	for n := range *identitiesPer {
		add(identityKey(id, n), identityValue(cluster, n, 0))
	}
	for n := range ips {
		add(ipKey(id, n), ipValue(cluster, id, n, 0))
	}
	return keys, values
}

func canaryKey(cluster, word string) string {
	return fmt.Sprintf("cilium/synced/%s/cilium/state/%s/v1", cluster, word)
}

func canaryHere(cluster, word string) string {
	return fmt.Sprintf("cilium/synced/%s/cilium/cache/%s/v1", cluster, word)
}

// here is the mirrored name of a key of a cluster.
func here(cluster, key string) (string, bool) {
	if rest, ok := strings.CutPrefix(key, identityPrefix); ok {
		return "cilium/cache/identities/v1/" + cluster + "/id/" + rest, true
	}
	if rest, ok := strings.CutPrefix(key, ipPrefix); ok {
		return "cilium/cache/ip/v1/" + cluster + "/" + rest, true
	}
	for _, word := range []string{"nodes", "services"} {
		prefix := "cilium/state/" + word + "/v1/" + cluster + "/"
		if rest, ok := strings.CutPrefix(key, prefix); ok {
			return "cilium/cache/" + word + "/v1/" + cluster + "/" + rest, true
		}
	}
	return "", false
}

// clusterOf is the cluster of a mirrored key.
func clusterOf(key string) string {
	parts := strings.Split(key, "/")
	switch {
	case len(parts) > 4 && parts[1] == "cache":
		return parts[4]
	case len(parts) > 2 && (parts[1] == "synced" || parts[1] == "cluster-config"):
		return parts[2]
	}
	return ""
}

// origins are the keys from which a mirrored key can come.
func origins(cluster, key string) []string {
	if rest, ok := strings.CutPrefix(key, "cilium/cache/identities/v1/"+cluster+"/id/"); ok {
		return []string{identityPrefix + rest}
	}
	if rest, ok := strings.CutPrefix(key, "cilium/cache/ip/v1/"+cluster+"/"); ok {
		return []string{ipPrefix + rest}
	}
	return []string{strings.Replace(key, "cilium/cache/", "cilium/state/", 1)}
}
