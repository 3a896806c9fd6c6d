{{/* The etcd client file of a cluster. Takes a dict of `endpoint` and `prefix`, the first part of the names of its
     certificate files, `ca`, the first part of the name of the CA file, and optionally `host` and `ips`. */}}
{{- define "isthmus.clientFile" -}}
endpoints:
- {{ .endpoint }}
trusted-ca-file: /var/lib/cilium/clustermesh/{{ .ca }}etcd-client-ca.crt
key-file: /var/lib/cilium/clustermesh/{{ .prefix }}etcd-client.key
cert-file: /var/lib/cilium/clustermesh/{{ .prefix }}etcd-client.crt
{{- with .ips }}
cilium-host-aliases:
- hostname: {{ $.host }}
  ips:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{ end -}}
