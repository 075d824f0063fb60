{{- define "gatehouse.name" -}}
{{- .Values.nameOverride | default "gatehouse" -}}
{{- end -}}

{{/* Policies are of the whole cluster, so another name is another policy. */}}
{{- define "gatehouse.policy" -}}
{{- if eq (include "gatehouse.name" .) "gatehouse" -}}
gatehouse.e13.dev
{{- else -}}
{{ include "gatehouse.name" . }}.gatehouse.e13.dev
{{- end -}}
{{- end -}}

{{- define "gatehouse.selectorLabels" -}}
app.kubernetes.io/name: gatehouse
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gatehouse.labels" -}}
{{ include "gatehouse.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* How long gatehouse may take to stop, and ten seconds. */}}
{{- define "gatehouse.grace" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- $timeout := .Values.config.stopTimeout | default "10s" -}}
{{- if regexMatch "^[0-9]+s$" $timeout -}}
{{- add 10 (trimSuffix "s" $timeout | int) -}}
{{- else if regexMatch "^[0-9]+m$" $timeout -}}
{{- add 10 (mul 60 (trimSuffix "m" $timeout | int)) -}}
{{- else -}}
{{- fail (printf "config.stopTimeout is %s: write it as seconds (90s) or minutes (2m), or set terminationGracePeriodSeconds to more than that" $timeout) -}}
{{- end -}}
{{- else -}}
{{- .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/* The file of gatehouse. */}}
{{- define "gatehouse.config" -}}
{{- $admin := dict "socket" "/run/gatehouse/api.sock" "listen" (printf "127.0.0.1:%d" (int .Values.adminPort)) -}}
{{- if .Values.metrics.zones -}}
{{- $_ := set $admin "zones" .Values.metrics.zones -}}
{{- $_ := set $admin "port" (int .Values.adminPort) -}}
{{- $_ := set $admin "tokenFile" (printf "/etc/gatehouse-token/%s" .Values.metrics.tokenSecret.key) -}}
{{- end -}}
{{- $config := merge (dict "apiVersion" "gatehouse.e13.dev/v1" "admin" $admin "stateDir" "/var/lib/gatehouse") .Values.config -}}
{{- $kubernetes := .Values.config.kubernetes | default dict -}}
{{- toYaml (set $config "kubernetes" $kubernetes) -}}
{{- end -}}
