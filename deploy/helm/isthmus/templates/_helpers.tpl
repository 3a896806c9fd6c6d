{{- define "isthmus.name" -}}
{{- required "fullnameOverride must not be empty: it is the name of all objects" .Values.fullnameOverride -}}
{{- end -}}

{{/* Labels that select the pods; they never change. */}}
{{- define "isthmus.selector" -}}
k8s-app: {{ include "isthmus.name" . }}
{{- end -}}

{{- define "isthmus.podLabels" -}}
{{ include "isthmus.selector" . }}
app.kubernetes.io/name: {{ include "isthmus.name" . }}
app.kubernetes.io/part-of: cilium
{{- end -}}

{{/* Metadata of an object: name, namespace, labels, annotations. Takes a dict of `root`, and optionally `name`, `cluster`
     (no namespace), `labels`, `annotations`. */}}
{{- define "isthmus.metadata" -}}
{{- $root := .root -}}
name: {{ .name | default (include "isthmus.name" $root) }}
{{- if not .cluster }}
namespace: {{ $root.Release.Namespace }}
{{- end }}
labels:
  {{- include "isthmus.podLabels" $root | nindent 2 }}
  app.kubernetes.io/managed-by: {{ $root.Release.Service }}
  app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
  helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
  {{- with merge (dict) (.labels | default dict) $root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "isthmus.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "isthmus.name" .) -}}
{{- end -}}

{{- define "isthmus.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "isthmus.claim" -}}
{{- .Values.storage.persistent.existingClaim | default (include "isthmus.name" .) -}}
{{- end -}}

{{/* The name of this cluster, for the common names of certificates. */}}
{{- define "isthmus.clusterName" -}}
{{- $name := .Values.cluster.name -}}
{{- if and (not $name) .Values.ciliumConfig -}}
{{- $config := lookup "v1" "ConfigMap" .Release.Namespace .Values.ciliumConfig | default dict -}}
{{- $name = dig "data" "cluster-name" "" $config -}}
{{- end -}}
{{- if not $name -}}
{{- fail (printf "the name of this cluster is unknown: set cluster.name, because ConfigMap %q in namespace %q has no cluster-name, or cannot be read" .Values.ciliumConfig .Release.Namespace) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* The other clusters, as JSON: name → entry. Takes the forms of Cilium's chart, a map or a list. */}}
{{- define "isthmus.clusters" -}}
{{- $clusters := dict -}}
{{- range $key, $entry := .Values.config.clusters -}}
{{- $name := ternary $key $entry.name (kindIs "string" $key) -}}
{{- if ne $entry.enabled false -}}
{{- if not (regexMatch "^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$" $name) -}}
{{- fail (printf "config.clusters: the name %q must have at most 32 lower case letters, digits and '-'" $name) -}}
{{- end -}}
{{- if not (or $entry.ips $entry.address) -}}
{{- fail (printf "config.clusters.%s has neither ips nor address" $name) -}}
{{- end -}}
{{- if not $entry.port -}}
{{- fail (printf "config.clusters.%s has no port: 2379, or the node port of its Service" $name) -}}
{{- end -}}
{{- $_ := set $clusters $name $entry -}}
{{- end -}}
{{- end -}}
{{- toJson $clusters -}}
{{- end -}}

{{/* The common name of the certificate that other clusters' stores know this cluster by. */}}
{{- define "isthmus.remoteName" -}}
{{- if eq .Values.tls.authMode "cluster" -}}
remote-{{ include "isthmus.clusterName" . }}
{{- else -}}
remote
{{- end -}}
{{- end -}}

{{- define "isthmus.serverNames" -}}
{{- $name := printf "%s.%s.svc" (include "isthmus.name" .) .Release.Namespace -}}
{{- $agents := printf "clustermesh-apiserver.%s.svc" .Release.Namespace -}}
{{- $peers := printf "%s-peers.%s.svc" (include "isthmus.name" .) .Release.Namespace -}}
{{- concat (list $name $agents "*.mesh.cilium.io") (ternary (list $peers) list .Values.follow.enabled) .Values.tls.server.extraDnsNames | uniq | toJson -}}
{{- end -}}

{{- define "isthmus.serverAddresses" -}}
{{- concat (list "127.0.0.1" "::1") .Values.tls.server.extraIpAddresses | uniq | toJson -}}
{{- end -}}
