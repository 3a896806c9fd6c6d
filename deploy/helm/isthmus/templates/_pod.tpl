{{/* The environment: where the data are, and the cluster's own settings from Cilium's ConfigMap. */}}
{{- define "isthmus.env" -}}
{{- $config := .Values.ciliumConfig -}}
{{- if ne .Values.storage.type "memory" -}}
- name: CILIUM_DATA_DIR
  value: /var/run/etcd/data
{{ end -}}
- name: CILIUM_QUOTA_BACKEND_BYTES
  value: {{ .Values.storage.quotaBackendBytes | int64 | quote }}
- name: CILIUM_CLUSTER_NAME
{{- if .Values.cluster.name }}
  value: {{ .Values.cluster.name | quote }}
{{- else }}
  valueFrom:
    configMapKeyRef:
      name: {{ $config }}
      key: cluster-name
{{- end }}
- name: CILIUM_CLUSTER_ID
{{- if .Values.cluster.id }}
  value: {{ .Values.cluster.id | quote }}
{{- else }}
  valueFrom:
    configMapKeyRef:
      name: {{ $config }}
      key: cluster-id
{{- end }}
{{- if include "isthmus.scope" . }}
- name: CILIUM_SCOPE
  value: /var/lib/isthmus/scope/scope.yaml
{{- end }}
{{- if .Values.follow.enabled }}
- name: CILIUM_FOLLOW
  value: /var/lib/isthmus/upstream/upstream.yaml
- name: CILIUM_PEERS
  value: /var/lib/isthmus/upstream/peers.yaml
- name: CILIUM_DRAIN_TIME
  value: {{ .Values.follow.drainTime }}
- name: CILIUM_MAX_CONNECTION_AGE
  value: {{ .Values.follow.maxConnectionAge }}
{{- end }}
{{- if $config }}
{{- range $pair := list
  (list "CILIUM_MAX_CONNECTED_CLUSTERS" "max-connected-clusters")
  (list "CILIUM_CLUSTERMESH_CACHE_TTL" "clustermesh-cache-ttl")
  (list "CILIUM_CLUSTERMESH_ENABLE_MCS_API" "clustermesh-enable-mcs-api")
  (list "CILIUM_CLUSTERMESH_DEFAULT_GLOBAL_NAMESPACE" "clustermesh-default-global-namespace")
  (list "CILIUM_ENABLE_CILIUM_ENDPOINT_SLICE" "enable-cilium-endpoint-slice") }}
- name: {{ first $pair }}
  valueFrom:
    configMapKeyRef:
      name: {{ $config }}
      key: {{ last $pair }}
      optional: true
{{- end }}
{{- end }}
{{- include "isthmus.uiEnv" . }}
{{- with .Values.traces.otlpEndpoint }}
- name: CILIUM_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: CILIUM_OTLP_SAMPLE
  value: {{ $.Values.traces.sample | quote }}
{{- end }}
{{- end -}}

{{/* The environment of the mesh page, where it differs from the defaults of the process. */}}
{{- define "isthmus.uiEnv" -}}
{{- $ui := .Values.ui -}}
{{- if eq $ui.expose "none" }}
- name: CILIUM_UI_ADDR
  value: ""
{{- else if eq $ui.expose "service" }}
{{- $files := ternary "/var/lib/ui-secrets" "/var/lib/etcd-secrets" (not (empty $ui.tlsSecret)) }}
- name: CILIUM_UI_ADDR
  value: ":{{ $ui.port }}"
- name: CILIUM_UI_CERT_FILE
  value: {{ $files }}/tls.crt
- name: CILIUM_UI_KEY_FILE
  value: {{ $files }}/tls.key
- name: CILIUM_UI_TRUSTED_CA_FILE
  value: /var/lib/etcd-secrets/ca.crt
{{- if $ui.tokenSecret.name }}
- name: CILIUM_UI_TOKEN_FILE
  value: /var/lib/ui-token/{{ $ui.tokenSecret.key }}
{{- end }}
{{- else if ne (int $ui.port) 9890 }}
- name: CILIUM_UI_ADDR
  value: "localhost:{{ $ui.port }}"
{{- end }}
{{- end -}}

{{- define "isthmus.volumes" -}}
- name: etcd-server-secrets
  projected:
    defaultMode: 256
    sources:
    - secret:
        name: {{ .Values.tls.secrets.server }}
        items:
        - key: tls.crt
          path: tls.crt
        - key: tls.key
          path: tls.key
    {{- include "isthmus.trust" (dict "bundle" .Values.tls.caBundle "path" "ca.crt" "optional" false) | nindent 4 }}
# One file for each remote cluster, and the certificate that their stores are read with. The directory is followed: clusters
# join and leave without a restart.
- name: kvstoremesh-secrets
  projected:
    defaultMode: 256
    sources:
    - secret:
        name: cilium-kvstoremesh
        optional: true
    - secret:
        name: {{ .Values.tls.secrets.remote }}
        optional: true
        items:
        - key: tls.key
          path: common-etcd-client.key
        - key: tls.crt
          path: common-etcd-client.crt
    {{- include "isthmus.trust" (dict "bundle" .Values.tls.caBundle "path" "common-etcd-client-ca.crt" "optional" true) | nindent 4 }}
{{- if ne .Values.tls.authMode "legacy" }}
# While the ConfigMap is missing, the store keeps the users that it has.
- name: etcd-users-config
  configMap:
    name: clustermesh-remote-users
    optional: true
    defaultMode: 256
{{- end }}
{{- with include "isthmus.scope" . }}
# The pod waits for this ConfigMap. The file is followed.
- name: scope
  configMap:
    name: {{ . }}
    defaultMode: 256
{{- end }}
{{- if .Values.follow.enabled }}
# The etcd that the pod follows, and the other pods. The files are read again for each connection.
- name: upstream
  projected:
    defaultMode: 256
    sources:
    - configMap:
        name: {{ include "isthmus.upstream" . }}
    - secret:
        name: {{ .Values.follow.secret }}
        items:
        - key: tls.crt
          path: upstream.crt
        - key: tls.key
          path: upstream.key
        - key: ca.crt
          path: upstream-ca.crt
    - secret:
        name: {{ .Values.follow.peersSecret }}
        optional: true
        items:
        - key: tls.crt
          path: peers.crt
        - key: tls.key
          path: peers.key
        - key: ca.crt
          path: peers-ca.crt
{{- end }}
{{- if eq .Values.storage.type "emptyDir" }}
- name: etcd-data-dir
  emptyDir:
    {{- with .Values.storage.emptyDir.medium }}
    medium: {{ . }}
    {{- end }}
    sizeLimit: {{ .Values.storage.emptyDir.sizeLimit }}
{{- else if eq .Values.storage.type "persistent" }}
- name: etcd-data-dir
  persistentVolumeClaim:
    claimName: {{ include "isthmus.claim" . }}
{{- end }}
{{- if eq .Values.ui.expose "service" }}
{{- with .Values.ui.tlsSecret }}
- name: ui-secrets
  secret:
    secretName: {{ . }}
    defaultMode: 256
{{- end }}
{{- with .Values.ui.tokenSecret.name }}
- name: ui-token
  secret:
    secretName: {{ . }}
    defaultMode: 256
{{- end }}
{{- end }}
{{- end -}}

{{/* The name of the ConfigMap with the scope file; empty without a scope. */}}
{{- define "isthmus.scope" -}}
{{- if .Values.scope.existingConfigMap -}}
{{- .Values.scope.existingConfigMap -}}
{{- else if .Values.scope.file -}}
{{- include "isthmus.name" . }}-scope
{{- end -}}
{{- end -}}

{{/* The name of the ConfigMap with the files that name the etcd and the other pods. */}}
{{- define "isthmus.upstream" -}}
{{- .Values.follow.existingConfigMap | default (printf "%s-upstream" (include "isthmus.name" .)) -}}
{{- end -}}

{{/* The rest of a projected volume: the CA certificate, from the Secret that was begun before, or from the bundle. */}}
{{- define "isthmus.trust" -}}
{{- if .bundle.enabled -}}
- {{ ternary "secret" "configMap" .bundle.useSecret }}:
    name: {{ .bundle.name }}
    {{- if .optional }}
    optional: true
    {{- end }}
    items:
    - key: {{ .bundle.key }}
      path: {{ .path }}
{{- else -}}
{{/* These lines continue the list of items above. */}}
{{- printf "    - key: ca.crt\n      path: %s" .path -}}
{{- end -}}
{{- end -}}
