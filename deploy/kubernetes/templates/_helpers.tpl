{{- /* One step of a JSON patch, as kustomize's overlays have them (add, replace, remove), done to .object in place. */ -}}
{{- define "twctl.patch" -}}
{{- $parts := splitList "/" (trimPrefix "/" .step.path) -}}
{{- $last := last $parts -}}
{{- $place := .object -}}
{{- $holder := dict -}}
{{- $name := "" -}}
{{- range initial $parts -}}
  {{- $holder = $place -}}
  {{- $name = . -}}
  {{- if kindIs "slice" $place }}{{ $place = index $place (atoi .) }}{{ else }}{{ $place = index $place . }}{{ end -}}
{{- end -}}
{{- if eq $last "-" -}}
  {{- $_ := set $holder $name (append $place .step.value) -}}
{{- else if eq .step.op "remove" -}}
  {{- $_ := unset $place $last -}}
{{- else -}}
  {{- $_ := set $place $last .step.value -}}
{{- end -}}
{{- end -}}

{{- /* .values as TOML, with dotted keys. Not toToml: to Helm every number is a float, and twctl wants whole ones whole. */ -}}
{{- define "twctl.toml" -}}
{{- range $name, $value := .values -}}
{{- if kindIs "map" $value -}}
{{- include "twctl.toml" (dict "prefix" (printf "%s%s." $.prefix $name) "values" $value) -}}
{{- else -}}
{{- printf "%s%s = %s\n" $.prefix $name (toJson $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Takes the item called "tls" out of the list .holder has under .key, in place. */ -}}
{{- define "twctl.without-tls" -}}
{{- $kept := list -}}
{{- range index .holder .key }}{{ if ne .name "tls" }}{{ $kept = append $kept . }}{{ end }}{{ end -}}
{{- $_ := set .holder .key $kept -}}
{{- end -}}
