{{- define "weir.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "weir.config" -}}
state-dir: {{ .Values.stateDir | quote }}
bpffs-dir: /sys/fs/bpf/weir
cni-conf: {{ printf "%s/05-weir.conflist" .Values.cniConfDir | quote }}
{{- with .Values.cniChain }}
{{- if ne $.Values.routing "none" }}
{{- fail (printf "cniChain %s: packets' ways are the other plugin's: set routing to none" .) }}
{{- end }}
cni-chain: {{ . | quote }}
{{- end }}
host-ports: {{ .Values.hostPorts }}
{{- if .Values.cgroupRoot }}
cgroup-root: /host/cgroup2
{{- end }}
{{- if .Values.announce }}
announce-in: {{ .Release.Namespace }}
{{- end }}
routing: {{ .Values.routing }}
tunnel-port: {{ int64 .Values.tunnelPort }}
masquerade: {{ .Values.masquerade }}
bpf-host-routing: {{ .Values.bpfHostRouting }}
process: {{ .Values.process }}
flow-records: {{ .Values.flowRecords }}
flow-update: {{ .Values.flowUpdate | quote }}
{{- range .Values.clusterCIDRs }}
{{- if not (contains ":" .) }}
{{- $bits := 0 }}
{{- range splitList "." (first (splitList "/" .)) }}
{{- $bits = add (mul $bits 256) (int .) }}
{{- end }}
{{- $size := 1 }}
{{- range until (int (sub 32 (int (last (splitList "/" .))))) }}
{{- $size = mul $size 2 }}
{{- end }}
{{- if mod $bits $size }}
{{- fail (printf "clusterCIDRs: %s has bits set behind its length: write the range's first address" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.clusterCIDRs }}
cluster-cidr: {{ toJson . }}
{{- end }}
node-egress: {{ .Values.nodeEgress }}
{{- with .Values.uplinks }}
uplink: {{ toJson . }}
{{- end }}
{{- /* A file of values may say off without quotes, which is false. */}}
uplink-xdp: {{ .Values.uplinkXDP | default "off" | quote }}
shield-deny-file: /etc/weir/shield-deny
{{- with .Values.mapSizes }}
map-size:
{{- range $name, $entries := . }}
  {{ $name }}: {{ int64 $entries }}
{{- end }}
{{- end }}
{{- if .Values.flowSpill.enabled }}
flow-spill-size: {{ int64 .Values.flowSpill.sizeMiB }}
flow-spill-age: {{ .Values.flowSpill.age }}
{{- else }}
flow-spill: none
{{- end }}
{{- with .Values.metrics.listen }}
metrics-listen: {{ . | quote }}
{{- end }}
{{- with .Values.hubble }}
{{- if .listen }}
hubble-listen: {{ .listen | quote }}
{{- if .tlsSecret }}
hubble-tls-cert: /etc/weir-hubble/tls.crt
hubble-tls-key: /etc/weir-hubble/tls.key
hubble-tls-client-ca: /etc/weir-hubble/ca.crt
{{- else if .insecure }}
hubble-insecure: true
{{- else if not (or (hasPrefix "127." .listen) (hasPrefix "[::1]" .listen)) }}
{{- fail (printf "hubble.listen %s: flows tell who talks to whom: name a Secret in hubble.tlsSecret, or set hubble.insecure" .listen) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.flowFile }}
{{- if .path }}
flow-export-file: {{ .path | quote }}
flow-export-file-size: {{ int64 .sizeMiB }}
flow-export-file-keep: {{ int64 .keep }}
flow-export-file-age: {{ .age }}
{{- with .filters }}
flow-export-file-filter: {{ toJson . }}
{{- end }}
{{- with .fields }}
flow-export-file-fields: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.otlp }}
{{- if .endpoint }}
otlp-endpoint: {{ .endpoint | quote }}
otlp-protocol: {{ .protocol }}
{{- if and .secretHas (not .secret) }}
{{- fail "otlp.secretHas is of a Secret: name it in otlp.secret" }}
{{- end }}
{{- if has "ca.crt" .secretHas }}
otlp-tls-ca: /etc/weir-otlp/ca.crt
{{- end }}
{{- if has "tls.crt" .secretHas }}
otlp-tls-cert: /etc/weir-otlp/tls.crt
otlp-tls-key: /etc/weir-otlp/tls.key
{{- end }}
{{- if has "headers" .secretHas }}
otlp-headers-file: /etc/weir-otlp/headers
{{- end }}
otlp-flows: {{ .flows }}
{{- with .filters }}
otlp-flow-filter: {{ toJson . }}
{{- end }}
{{- with .fields }}
otlp-flow-fields: {{ toJson . }}
{{- end }}
otlp-metrics: {{ .metrics }}
otlp-metrics-interval: {{ .metricsInterval }}
{{- end }}
{{- end }}
log-level: {{ .Values.logLevel }}
log-format: {{ .Values.logFormat }}
{{- end }}

{{- /* Mounts of whoever touches the node's own: the agent, and what takes it off. */}}
{{- define "weir.mounts" -}}
- {name: state, mountPath: {{ .Values.stateDir }}}
- {name: bpffs, mountPath: /sys/fs/bpf, mountPropagation: HostToContainer}
- {name: cni-conf, mountPath: {{ .Values.cniConfDir }}}
{{- end }}

{{- /* As few as the agent works with; docs/install.md has the reasons. */}}
{{- define "weir.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
capabilities:
  drop: [ALL]
  add: [BPF, NET_ADMIN, PERFMON]
{{- end }}
