{{- define "slipway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change: those that select. Takes a dict of root and component, as the next one. */}}
{{- define "slipway.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "slipway.labels" -}}
{{ include "slipway.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "slipway.installer" -}}
{{ include "slipway.fullname" . }}-installer
{{- end -}}

{{- define "slipway.uninstaller" -}}
{{ include "slipway.fullname" . }}-uninstaller
{{- end -}}

{{- define "slipway.wish" -}}
{{ include "slipway.fullname" . }}-wish
{{- end -}}

{{- define "slipway.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* "true" where the nodes are cleaned before the release goes. */}}
{{- define "slipway.uninstalls" -}}
{{- if and (ne .Values.installer.kind "None") (ne .Values.uninstall.policy "keep") -}}true{{- end -}}
{{- end -}}

{{/* What `slipway install` is told. */}}
{{- define "slipway.nodeArgs" -}}
- --install-dir={{ .Values.node.installDir }}
- --distribution={{ .Values.node.distribution }}
{{- with .Values.node.containerd.config }}
- --containerd-config={{ . }}
{{- end }}
{{- with .Values.node.containerd.unit }}
- --containerd-unit={{ . }}
{{- end }}
{{- with .Values.node.containerd.address }}
- --containerd-address={{ . }}
{{- end }}
{{- range .Values.runtimeClass.aliases }}
- --alias={{ . }}
{{- end }}
{{- range .Values.node.annotations }}
- --annotation={{ . }}
{{- end }}
{{- with .Values.node.cacheSize }}
- --cache-size={{ . }}
{{- end }}
{{- end -}}

{{/* The API server's address is in the environment of every container; this is the rest, with a token that lives an hour. */}}
{{- define "slipway.apiAccess" -}}
- name: api-access
  projected:
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3600
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
{{- end -}}

{{- define "slipway.apiAccessMount" -}}
- name: api-access
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end -}}

{{/* Of the container that works on a node: root, since systemd asks for the peer's user id; nothing else. */}}
{{- define "slipway.nodeSecurityContext" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- with .Values.installer.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
The template of a pod that works on its node. Takes a dict of root, component, and either once (ends when the node is
installed) or not (stays, serves metrics, uninstalls when told to); affinity, where it is not the values'.
*/}}
{{- define "slipway.nodePod" -}}
metadata:
  labels:
    {{- include "slipway.labels" (dict "root" .root "component" .component) | nindent 4 }}
    {{- with .root.Values.installer.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .root.Values.installer.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "slipway.installer" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- if .once }}
  restartPolicy: Never
  {{- end }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.installer.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .root.Values.installer.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with default .root.Values.installer.affinity .affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.installer.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: installer
      image: {{ include "slipway.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        - installer
        - --node=$(NODE_NAME)
        - --wish={{ .root.Release.Namespace }}/{{ include "slipway.wish" .root }}
        {{- if .once }}
        - --once
        {{- else }}
        - --metrics-address={{ .root.Values.metrics.address }}:{{ .root.Values.metrics.port }}
        {{- if .root.Values.uninstall.purge }}
        - --purge
        {{- end }}
        {{- end }}
        {{- include "slipway.nodeArgs" .root | nindent 8 }}
      env:
        - name: NODE_NAME
          valueFrom:
            fieldRef:
              fieldPath: spec.nodeName
      {{- if not .once }}
      ports:
        - name: metrics
          containerPort: {{ .root.Values.metrics.port }}
          protocol: TCP
      livenessProbe:
        httpGet:
          path: /healthz
          port: metrics
        initialDelaySeconds: 5
        periodSeconds: 20
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: /readyz
          port: metrics
        periodSeconds: 5
        timeoutSeconds: 5
      {{- end }}
      securityContext:
        {{- include "slipway.nodeSecurityContext" .root | nindent 8 }}
      resources:
        {{- toYaml .root.Values.installer.resources | nindent 8 }}
      volumeMounts:
        {{- include "slipway.apiAccessMount" .root | nindent 8 }}
        - name: install-dir
          mountPath: /host/opt/slipway
        - name: systemd
          mountPath: /host/run/systemd
          readOnly: true
        {{- if not .once }}
        - name: cache
          mountPath: /var/lib/slipway
          readOnly: true
        - name: counters
          mountPath: /run/slipway
          readOnly: true
        {{- end }}
  volumes:
    {{- include "slipway.apiAccess" .root | nindent 4 }}
    # Where Slipway's tree is copied to.
    - name: install-dir
      hostPath:
        path: {{ .root.Values.node.installDir }}
        type: DirectoryOrCreate
    # systemd's own socket, to which it gives `slipway install`, which runs on the host.
    - name: systemd
      hostPath:
        path: /run/systemd
        type: Directory
    {{- if not .once }}
    # What the metrics are made of: the cache, and what the shims count.
    - name: cache
      hostPath:
        path: /var/lib/slipway
        type: DirectoryOrCreate
    - name: counters
      hostPath:
        path: /run/slipway
        type: DirectoryOrCreate
    {{- end }}
{{- end -}}
